//! The names of all eBPF programs of the machine, so that those of others on our hooks can be named.

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use schemas::event::ProgramEntry;

use super::open::argument;
use crate::{
    maps::field,
    memory::{copied, load},
};

/// Writes number and name of every program. Asking the kernel for a program by its number takes CAP_SYS_ADMIN, which the
/// exporter does not need otherwise; this does not.
///
/// Runs once per program, when the exporter reads it.
///
/// # Minimum kernel version
/// 5.9 (iterators over programs).
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_prog")]
pub extern "C" fn list_programs(ctx: *mut c_void) -> i32 {
    let (meta, program) = (argument(ctx, 0), argument(ctx, 1));
    if program.is_null() {
        return 0;
    }
    let aux: *const u8 = load(program, field!(OFFSETS.program_aux));
    let entry = ProgramEntry { id: load(aux, field!(OFFSETS.aux_id)), name: copied(aux, field!(OFFSETS.aux_name)) };
    // The first field of `bpf_iter_meta`.
    let output: *mut seq_file = load(meta, 0);
    // SAFETY: the iterator's output, and as many bytes as said. What finds no room is asked for again by the kernel.
    unsafe { bpf_seq_write(output, (&raw const entry).cast(), size_of::<ProgramEntry>() as u32) };
    0
}
