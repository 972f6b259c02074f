//! Reads of the kernel's memory.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

/// Reads a field through a helper that bears any pointer.
#[inline(always)]
pub(crate) fn copied<T: Copy>(base: *const u8, offset: u32) -> T {
    load_from::<T, true>(base, offset)
}

/// Reads a field, either way.
#[inline(always)]
pub(crate) fn load_from<T: Copy, const COPIED: bool>(base: *const u8, offset: u32) -> T {
    if COPIED {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: the helper bears any address, and writes as many bytes as the value has; every field is an integer or
        // a pointer, for which zeros are valid.
        unsafe {
            let from = base.add(offset as usize).cast();
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from);
            value.assume_init()
        }
    } else {
        load(base, offset)
    }
}

/// Reads a field through a pointer that the verifier knows.
#[inline(always)]
pub(crate) fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: `base` is a BTF pointer and `offset` a constant from BTF: the kernel makes a fault in such a load read
    // zero, and the verifier refuses anything else. Volatile, so that loads are neither merged nor moved.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast()) }
}
