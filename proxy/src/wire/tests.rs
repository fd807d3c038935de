//! The codec against arbitrary and recorded bytes.

use postgres_protocol::message::frontend as oracle;
use proptest::prelude::*;

use super::frame::{HEADER_LEN, put_frame, split_cstr};
use super::frontend::{BindNames, Parse, Target, query_text};
use super::startup::{StartupPacket, packet_len};
use super::*;

/// A pipeline as an independent implementation writes it.
fn recorded() -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    oracle::query("select 1", &mut bytes).unwrap();
    oracle::parse("s1", "select $1::int", [23], &mut bytes).unwrap();
    let write = |(): (), _: &mut bytes::BytesMut| Ok(postgres_protocol::IsNull::Yes);
    assert!(oracle::bind("p1", "s1", [1], [()], write, [1], &mut bytes).is_ok());
    oracle::describe(b'S', "s1", &mut bytes).unwrap();
    oracle::execute("p1", 5, &mut bytes).unwrap();
    oracle::close(b'P', "p1", &mut bytes).unwrap();
    oracle::sync(&mut bytes);
    oracle::terminate(&mut bytes);
    bytes.to_vec()
}

/// Tags and frame lengths of a whole stream.
fn frames(mut bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut found = Vec::new();
    while let Some(header) = Header::read_frontend(bytes).unwrap() {
        found.push((header.tag, header.frame_len));
        bytes = &bytes[header.frame_len..];
    }
    found
}

#[test]
fn recorded_stream_is_cut_where_its_writer_cut_it() {
    // A wrong length by one would misread every message behind it.
    let bytes = recorded();
    let tags: String = frames(&bytes).iter().map(|(tag, _)| char::from(*tag)).collect();

    assert_eq!(tags, "QPBDECSX");
    assert_eq!(frames(&bytes).iter().map(|(_, len)| len).sum::<usize>(), bytes.len());
}

#[test]
fn header_is_incomplete_at_every_shorter_prefix_and_the_same_at_every_longer_one() {
    // A decision on a prefix would depend on how the network cut the stream.
    let bytes = recorded();
    let whole = Header::read_frontend(&bytes).unwrap();

    for end in 0..bytes.len() {
        let read = Header::read_frontend(&bytes[..end]).unwrap();
        assert_eq!(read, if end < HEADER_LEN { None } else { whole }, "prefix of {end}");
    }
}

#[test]
fn bodies_say_what_an_independent_writer_put_in() {
    // These names decide which prepared statement runs.
    let bytes = recorded();
    let mut rest = &bytes[..];
    let mut bodies = Vec::new();
    while let Some(header) = Header::read_frontend(rest).unwrap() {
        bodies.push((header.tag, &rest[HEADER_LEN..header.frame_len]));
        rest = &rest[header.frame_len..];
    }

    assert_eq!(query_text(bodies[0].1), Ok(&b"select 1"[..]));
    let parse = Parse::read(bodies[1].1).unwrap();
    assert_eq!((parse.name, parse.text), (&b"s1"[..], &b"select $1::int"[..]));
    let bind = BindNames::read(bodies[2].1).unwrap();
    assert_eq!((bind.portal, bind.statement, bind.len()), (&b"p1"[..], &b"s1"[..], 6));
    assert_eq!(Target::read(b'D', bodies[3].1), Ok(Target::Statement(b"s1")));
    assert_eq!(Target::read(b'C', bodies[5].1), Ok(Target::Portal(b"p1")));
}

#[test]
fn limits_are_those_of_postgresql() {
    // A length that PostgreSQL refuses must not make us wait for a gigabyte.
    let header = |tag: u8, length: u32| Header::read_frontend(&[&[tag][..], &length.to_be_bytes()].concat());

    assert!(header(b'S', 4).is_ok());
    assert!(matches!(header(b'S', 3), Err(WireError::BadLength { .. })));
    assert!(matches!(header(b'S', 10_005), Err(WireError::BadLength { .. })));
    assert!(header(b'Q', 10_005).is_ok());
    assert!(matches!(header(b'Q', 0x4000_0004), Err(WireError::BadLength { .. })));
    assert!(matches!(header(b'z', 4), Err(WireError::UnexpectedTag(b'z'))));
    assert!(matches!(packet_len(&10_001_u32.to_be_bytes()), Err(WireError::BadStartup(_))));
    assert!(matches!(packet_len(b"GET "), Err(WireError::BadStartup(_))));
}

#[test]
fn error_fields_survive_the_way_out_and_back() {
    // Drivers decide by SQLSTATE; our parser decides by severity.
    let mut out = Vec::new();
    ErrorMessage {
        severity: Severity::Fatal,
        code: SqlState::ADMIN_SHUTDOWN,
        message: "bye",
        detail: "reason=drain",
        hint: "",
    }
    .put(&mut out);
    let fields = ErrorFields::read(&out[HEADER_LEN..]);

    assert!(fields.is_fatal());
    assert_eq!((fields.sqlstate(), fields.message), (Some(SqlState::ADMIN_SHUTDOWN), &b"bye"[..]));
    let mut softened = Vec::new();
    error_fields::put_with_severity(&mut softened, &out[HEADER_LEN..], Severity::Error);
    assert!(!ErrorFields::read(&softened[HEADER_LEN..]).is_fatal());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        // Everything that a peer can send comes through these.
        let _ = Header::read(&bytes);
        let _ = Header::read_frontend(&bytes);
        let _ = query_text(&bytes);
        let _ = Parse::read(&bytes);
        let _ = BindNames::read(&bytes);
        let _ = Target::read(b'D', &bytes);
        let _ = packet_len(&bytes);
        let _ = StartupPacket::read(&bytes);
        let _ = ErrorFields::read(&bytes);
        let _ = backend::data_row(&bytes);
        let _ = backend::parameter_status(&bytes);
    }

    #[test]
    fn a_written_frame_reads_back_whole(tag: u8, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        // Writer and reader must agree that the length counts itself and not the tag.
        let mut out = Vec::new();
        put_frame(&mut out, tag, |out| out.extend_from_slice(&body));
        let header = Header::read(&out).unwrap().unwrap();

        prop_assert_eq!((header.tag, header.frame_len, header.body_len()), (tag, out.len(), body.len()));
    }

    #[test]
    fn startup_parameters_read_back(pairs in proptest::collection::vec(("[a-z]{1,9}", "[ -~]{0,20}"), 0..8)) {
        // A lost parameter is a lost setting.
        let packet = startup::startup_message(
            startup::VERSION_3_0,
            pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        );
        let StartupPacket::Startup { version, parameters } = StartupPacket::read(&packet).unwrap() else {
            panic!("not a startup packet")
        };

        prop_assert_eq!(version, startup::VERSION_3_0);
        let read: Vec<_> = parameters
            .into_iter()
            .map(|(n, v)| (String::from_utf8(n).unwrap(), String::from_utf8(v).unwrap()))
            .collect();
        prop_assert_eq!(read, pairs);
    }

    #[test]
    fn zero_bytes_end_strings(head in "[a-z]{0,9}", tail in proptest::collection::vec(any::<u8>(), 0..9)) {
        // The rest must start right behind the zero byte.
        let bytes = [head.as_bytes(), &[0], &tail].concat();

        prop_assert_eq!(split_cstr(&bytes), Some((head.as_bytes(), &tail[..])));
    }
}
