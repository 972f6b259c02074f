//! Flowscribe's eBPF programs.
//!
//! ```text
//! socket state ──sock_ops──► FlowEvent ──EVENTS ring buffer──► exporter
//!                    └─────► COUNTERS (per CPU)
//! ```
//!
//! The programs decide nothing: they read a socket at three transitions and hand the facts on. There is no per-packet
//! hook, no wake-up of the reader per event, and identity always comes from the socket, never from the current task:
//! state changes fire in softirq, on behalf of whoever was interrupted.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod programs;
mod socket;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Helpers used here are available to programs of a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
