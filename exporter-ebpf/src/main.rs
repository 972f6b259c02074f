//! Flowscribe's eBPF programs.
//!
//! ```text
//! TCP   sock_ops, close ──► FlowEvent ──EVENTS ring buffer──► exporter
//!       open (each window) ────┘ └─ full ─► EDGES map ──────────► exporter
//! UDP   udp ──────────────────────────────────┘
//! cgroup ──► CgroupEvent ──EVENTS────────────────────────────────► exporter
//! ```
//!
//! The programs decide nothing. Of a TCP connection they remember when it began, and tell of it when it ends; what is
//! open is told once a window, in one walk over what is remembered. There is no per-packet hook, no wake-up of the
//! reader per event, and identity comes from the socket, never from the current task: state changes fire in softirq, on
//! behalf of whoever was interrupted.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod event;
mod maps;
mod memory;
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
