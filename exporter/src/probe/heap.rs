//! The heap of this process, which is to stay small on every node.

/// Gives free memory back to the system: after a peak, it would stay with the process.
pub(crate) fn return_memory() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper knows malloc_trim")]
    // SAFETY: no precondition; any thread may call it at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Has all threads share one heap, which gives more of it back; to be called before there are any. They are few, and
/// none allocates much while another does.
pub(crate) fn share_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper knows mallopt")]
    // SAFETY: no precondition.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}
