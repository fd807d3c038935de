//! Splitting a stream into frames: what every message costs on its way through.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::exchange::Facts;
use tidegate::wire::Header;
use tidegate::wire::frame::put_frame;

/// An answer of a hundred small rows, as a server sends it.
fn rows() -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..100 {
        put_frame(&mut bytes, b'D', |out| out.extend_from_slice(&[0, 1, 0, 0, 0, 4, b'1', b'2', b'3', b'4']));
    }
    put_frame(&mut bytes, b'C', |out| out.extend_from_slice(b"SELECT 100\0"));
    put_frame(&mut bytes, b'Z', |out| out.push(b'I'));
    bytes
}

fn split(bytes: &[u8]) -> usize {
    let mut frames = 0;
    let mut rest = bytes;
    while let Ok(Some(header)) = Header::read_backend(rest) {
        frames += 1;
        rest = rest.get(header.frame_len..).unwrap_or_default();
    }
    frames
}

fn benches(criterion: &mut Criterion) {
    let bytes = rows();
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(102));
    group.bench_function("split 102 frames", |bench| bench.iter(|| split(black_box(&bytes))));
    group.finish();

    let mut group = criterion.benchmark_group("facts");
    for text in [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
        "UPDATE pgbench_accounts SET abalance = abalance + 17 WHERE aid = 12345;",
        "BEGIN",
    ] {
        group.bench_function(text, |bench| bench.iter(|| Facts::of(black_box(text.as_bytes()))));
    }
    group.finish();
}

criterion_group!(frame, benches);
criterion_main!(frame);
