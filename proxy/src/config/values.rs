//! The types that an operator's values have: human durations, whole numbers, shares, lists, secrets.

use std::fmt;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Password, Webhook, WebhookKind};

/// The longest duration: an instant this far ahead still exists on every clock, and nobody waits longer.
const DURATION_MAX: Duration = Duration::from_hours(366 * 24);

/// A duration as text with a unit, `"250ms"` or `"1h 30m"`; zero needs no unit.
pub(super) struct Human(pub(super) Duration);

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HumanVisitor)
    }
}

struct HumanVisitor;

impl Visitor<'_> for HumanVisitor {
    type Value = Human;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with its unit in quotes, such as \"250ms\", \"30s\" or \"1h\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Human, E> {
        let duration = humantime::parse_duration(text.trim())
            .map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
        if duration > DURATION_MAX {
            return Err(E::custom(format_args!(
                "\"{text}\" is longer than 366 days; write a shorter duration"
            )));
        }
        Ok(Human(duration))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Human, E> {
        if number == 0 {
            return Ok(Human(Duration::ZERO));
        }
        Err(E::invalid_type(Unexpected::Signed(number), &self))
    }
}

/// A whole number.
pub(super) struct Count(pub(super) usize);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, such as 20")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Count, E> {
        usize::try_from(number).map(Count).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }
}

/// A share as a number.
pub(super) struct Share(pub(super) f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShareVisitor)
    }
}

struct ShareVisitor;

impl Visitor<'_> for ShareVisitor {
    type Value = Share;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a share above 0 and at most 1, such as 0.7")
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Share, E> {
        if number > 0.0 && number <= 1.0 {
            return Ok(Share(number));
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Share, E> {
        if number == 1 { Ok(Share(1.0)) } else { Err(E::invalid_value(Unexpected::Signed(number), &self)) }
    }
}

/// One text, several with commas between them, or a list of texts.
pub(super) struct Texts(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text in quotes, or a list of such texts")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
        Ok(Texts(text.split(',').map(|part| part.trim().to_owned()).collect()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            texts.push(text.trim().to_owned());
        }
        Ok(Texts(texts))
    }
}

/// A list of tables. Who writes something else there writes a URL with a token, so no message repeats it.
pub(super) struct Webhooks(pub(super) Vec<Webhook>);

const WEBHOOKS: &str =
    "a list of tables is wanted; write webhooks = [{ url = \"https://…\", kind = \"slack\" }] in the file";

impl<'de> Deserialize<'de> for Webhooks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry(Webhook);

        impl<'de> Deserialize<'de> for Entry {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(WebhookVisitor).map(Entry)
            }
        }

        struct ListVisitor;

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = Webhooks;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tables")
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Webhooks, E> {
                Err(E::custom(WEBHOOKS))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Webhooks, A::Error> {
                let mut webhooks = Vec::new();
                while let Some(Entry(webhook)) = list.next_element()? {
                    webhooks.push(webhook);
                }
                Ok(Webhooks(webhooks))
            }
        }

        deserializer.deserialize_any(ListVisitor)
    }
}

struct WebhookVisitor;

impl<'de> Visitor<'de> for WebhookVisitor {
    type Value = Webhook;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table with a url")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Webhook, E> {
        Err(E::custom(WEBHOOKS))
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Webhook, A::Error> {
        Webhook::deserialize(MapAccessDeserializer::new(table))
    }
}

impl<'de> Deserialize<'de> for WebhookKind {
    /// A URL may stand in the wrong place, so the message does not repeat the word.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Password::deserialize(deserializer)?;
        let kind = Self::ALL.into_iter().find(|kind| kind.word() == word.reveal());
        kind.ok_or_else(|| D::Error::custom("unknown kind; write json, slack, pagerduty or alertmanager"))
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PasswordVisitor)
    }
}

struct PasswordVisitor;

impl PasswordVisitor {
    // Without this serde would put the secret itself into its error.
    fn refuse<E: Error>() -> E {
        E::custom("a secret must be text in quotes")
    }
}

impl Visitor<'_> for PasswordVisitor {
    type Value = Password;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret as text in quotes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Password, E> {
        Ok(Password::new(text.to_owned()))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Password, E> {
        Err(Self::refuse())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Password, E> {
        Err(Self::refuse())
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Password, E> {
        Err(Self::refuse())
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Password, E> {
        Err(Self::refuse())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Password, E> {
        Err(Self::refuse())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Password, E> {
        Err(Self::refuse())
    }
}
