//! Throwaway servers for a look at tidegate.

fn main() {}
