//! One module per hook.

mod sock_ops;
