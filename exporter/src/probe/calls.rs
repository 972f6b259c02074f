//! Every kernel function that a program of the object calls, against a table of the first Linux that lets a program of
//! that kind call it: the verifier of an older one refuses the program, however well it loads here.

use std::collections::BTreeSet;

use aya_obj::{Object, ProgramSection};

use super::{OBJECT, OLDEST_KERNEL};

/// Kinds of programs by what they may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    SockOps,
    SockAddr,
    /// Tracepoints with types, returns of functions, and iterators.
    Tracing,
}
use Kind::{SockAddr, SockOps, Tracing};

/// A kind of program, and the first Linux that lets it call something.
type Since = (Kind, (u32, u32));

/// Number and name of a kernel function in the kernel's user API (`enum bpf_func_id`), and the first Linux that lets each
/// kind of program call it. From docs.ebpf.io, which takes it from the kernel's history; what was tried is in KERNELS.md.
const CALLABLE: [(i32, &str, &[Since]); 19] = [
    (1, "map_lookup_elem", &[(SockOps, (4, 13)), (SockAddr, (4, 17)), (Tracing, (5, 5))]),
    (2, "map_update_elem", &[(SockOps, (4, 13)), (SockAddr, (4, 17)), (Tracing, (5, 5))]),
    (3, "map_delete_elem", &[(SockOps, (4, 13)), (SockAddr, (4, 17)), (Tracing, (5, 5))]),
    (14, "get_current_pid_tgid", &[(SockOps, (6, 10)), (SockAddr, (5, 10)), (Tracing, (5, 5))]),
    (35, "get_current_task", &[(SockOps, (5, 10)), (SockAddr, (5, 10)), (Tracing, (5, 5))]),
    (46, "get_socket_cookie", &[(SockOps, (4, 13)), (SockAddr, (4, 18)), (Tracing, (5, 12))]),
    (59, "sock_ops_cb_flags_set", &[(SockOps, (4, 16))]),
    (113, "probe_read_kernel", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 5))]),
    (115, "probe_read_kernel_str", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 5))]),
    (122, "get_netns_cookie", &[(SockOps, (5, 15)), (SockAddr, (5, 7))]),
    (125, "ktime_get_boot_ns", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 8))]),
    (127, "seq_write", &[(Tracing, (5, 7))]),
    (130, "ringbuf_output", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 8))]),
    (131, "ringbuf_reserve", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 8))]),
    (132, "ringbuf_submit", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 8))]),
    (133, "ringbuf_discard", &[(SockOps, (5, 8)), (SockAddr, (5, 8)), (Tracing, (5, 8))]),
    (137, "skc_to_tcp_sock", &[(SockOps, (5, 9)), (SockAddr, (5, 9)), (Tracing, (5, 9))]),
    (162, "sock_from_file", &[(Tracing, (5, 11))]),
    (164, "for_each_map_elem", &[(SockOps, (5, 13)), (SockAddr, (5, 13)), (Tracing, (5, 13))]),
];

/// `BPF_JMP | BPF_CALL`, and in the source register what is called.
const CALL: u8 = 0x85;
const OF_KERNEL: u8 = 0;
const OF_MODULE: u8 = 2;

#[test]
fn no_program_calls_what_the_oldest_kernel_does_not_let_it_call() {
    let object = Object::parse(OBJECT).expect("the committed object");
    let oldest = OLDEST_KERNEL.split_once('.').expect("two numbers");
    let oldest: (u32, u32) = (oldest.0.parse().expect("a number"), oldest.1.parse().expect("a number"));
    let mut called = BTreeSet::new();
    for (name, program) in &object.programs {
        let kind = match &program.section {
            ProgramSection::SockOps => SockOps,
            ProgramSection::CgroupSockAddr { .. } => SockAddr,
            ProgramSection::BtfTracePoint | ProgramSection::FExit { .. } | ProgramSection::Iter { .. } => Tracing,
            _ => panic!("{name}: the table has no kind for it"),
        };
        let function = &object.functions[&program.function_key()];
        for instruction in function.instructions.iter().filter(|instruction| instruction.code == CALL) {
            assert_ne!(instruction.src_reg(), OF_MODULE, "{name} calls a function outside of the user API");
            if instruction.src_reg() == OF_KERNEL {
                called.insert((name.clone(), kind, instruction.imm));
            }
        }
    }
    assert!(called.len() > 20, "the object's calls are found: {called:?}");
    for (name, kind, number) in called {
        let known = CALLABLE.iter().find(|(known, ..)| *known == number);
        let (_, function, kinds) = known.unwrap_or_else(|| panic!("{name} calls {number}, which the table lacks"));
        let first = kinds.iter().find(|(of, _)| *of == kind).map(|(_, first)| *first);
        let first = first.unwrap_or_else(|| panic!("{name}: a {kind:?} program may not call bpf_{function}"));
        assert!(first <= oldest, "{name}: a {kind:?} program may call bpf_{function} since Linux {first:?} only");
    }
}

#[test]
fn the_table_refuses_what_a_kernel_refused() {
    let (_, name, kinds) = CALLABLE.iter().find(|(number, ..)| *number == 14).expect("it is there");
    assert_eq!(*name, "get_current_pid_tgid");
    // Linux 6.1: "unknown func bpf_get_current_pid_tgid#14" in a sock_ops program.
    assert!(kinds.iter().any(|(kind, first)| *kind == SockOps && *first > (6, 1)));
}
