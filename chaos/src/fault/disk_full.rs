//! No space left for WAL: the server panics, and cannot start again until there is space.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use crate::cluster::{Doing, Error, Node, Result, WAL_MOUNT, WalStorage};

use super::Guard;

pub(super) fn inject(node: &Arc<Node>) -> Result<Guard> {
    let WalStorage::Memory { mib } = node.wal() else {
        let what = format!("filling pg_wal of {}", node.name());
        return Err(Error::Unsupported {
            what,
            why: "the scenario's cluster needs wal = \"memory\"".to_owned(),
        });
    };
    let ballast = node.socket_dir().join(WAL_MOUNT).join("ballast");
    let mut file = fs::File::create(&ballast).doing_to("create", &ballast)?;
    let block = vec![0_u8; 1 << 20];
    // Until there is no space left: that is the fault.
    for _ in 0..mib {
        if file.write_all(&block).is_err() {
            break;
        }
    }
    // The current segment is on disk already; the next one finds no space.
    let switched = node.sql(
        "SELECT pg_logical_emit_message(true, 'fill', repeat('x', 1000000)) FROM generate_series(1, 40)",
    );
    // The statement dies with the server.
    drop(switched);
    let node = Arc::clone(node);
    Ok(Guard::new(move || {
        fs::remove_file(&ballast).doing_to("remove", &ballast)?;
        // Usually dead by now; where it lives, a restart is what an operator would do as well.
        let _ = node.kill();
        node.resume()
    }))
}
