//! Texts that call functions which are not known by name, and what they do: analysing such a text allocates, and an
//! application that does not prepare its statements sends the same ones again and again.
//!
//! One small table per thread. A text is kept when it comes for the second time in its place of the table, so that
//! texts which never repeat cost no more than a hash.

use std::cell::RefCell;
use std::hash::BuildHasher;

use super::facts::Facts;

/// Places of the table.
const PLACES: u64 = 128;
/// Longer texts are analysed each time.
const TEXT_MAX: usize = 2048;

/// One text.
#[derive(Debug, Default)]
struct Place {
    hash: u64,
    kept: Option<(Box<[u8]>, Facts)>,
}

#[derive(Debug, Default)]
struct Table {
    hasher: foldhash::fast::RandomState,
    /// Empty until there is something to remember.
    places: Vec<Place>,
}

impl Table {
    fn hash(&self, text: &[u8]) -> u64 {
        self.hasher.hash_one(text)
    }

    fn place(&mut self, hash: u64) -> Option<&mut Place> {
        self.places.get_mut(usize::try_from(hash % PLACES).unwrap_or(0))
    }
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::default();
}

/// What a text does, if that is remembered.
pub(super) fn facts(text: &[u8]) -> Option<Facts> {
    TABLE.with_borrow_mut(|table| {
        if table.places.is_empty() || text.len() > TEXT_MAX {
            return None;
        }
        let hash = table.hash(text);
        let (kept, facts) = table.place(hash)?.kept.as_ref()?;
        (**kept == *text).then(|| facts.clone())
    })
}

/// Remembers a text, if it came before.
pub(super) fn remember(text: &[u8], facts: &Facts) {
    if text.len() > TEXT_MAX {
        return;
    }
    TABLE.with_borrow_mut(|table| {
        if table.places.is_empty() {
            table.places.resize_with(usize::try_from(PLACES).unwrap_or(0), Place::default);
        }
        let hash = table.hash(text);
        let Some(place) = table.place(hash) else { return };
        if place.hash == hash {
            place.kept = Some((text.into(), facts.clone()));
        }
        place.hash = hash;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::facts::Need;

    #[test]
    fn a_text_is_kept_when_it_comes_again() {
        // Keeping every text would allocate for those that never repeat; keeping none, for those that do.
        let text = b"SELECT a_function_of_ours($$x$$)";
        let kept = |text: &[u8]| facts(text).is_some();

        let first = Facts::of(text);
        assert!(!kept(text));
        let second = Facts::of(text);
        assert!(kept(text));

        assert_eq!((first.lane, &first), (Need::Write, &second));
        assert_eq!(Facts::of(text), first);
        assert!(!kept(b"SELECT a_function_of_ours($$y$$)"));
    }
}
