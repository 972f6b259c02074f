//! Where the running kernel keeps the fields of a socket, read from its BTF.
//!
//! Rust has no relocations for kernel types, so the programs take offsets from a read-only global instead; the verifier
//! sees them as constants.

use std::path::Path;

use btf_rs::{Backend, Btf, BtfType, Struct, Type};
use schemas::event::SocketOffsets;

use super::ProbeError;

/// What the running kernel is like.
pub(super) struct Kernel {
    pub(super) offsets: SocketOffsets,
    btf: Btf,
}

impl Kernel {
    /// Whether it has a tracepoint, by its name.
    pub(super) fn has_tracepoint(&self, name: &str) -> bool {
        self.btf.resolve_types_by_name(&format!("btf_trace_{name}")).is_ok_and(|found| !found.is_empty())
    }

    /// How many arguments a function of it has; `None` where there is no such function.
    pub(super) fn arguments(&self, function: &str) -> Option<usize> {
        let candidates = self.btf.resolve_types_by_name(function).ok()?;
        candidates.into_iter().find_map(|candidate| {
            let Type::Func(found) = candidate else { return None };
            let Type::FuncProto(form) = self.btf.resolve_chained_type(&found).ok()? else { return None };
            Some(form.parameters.len())
        })
    }
}

/// Reads every offset.
///
/// # Errors
/// The file can't be read, or the kernel lacks a field.
pub(super) fn read(path: &Path) -> Result<Kernel, ProbeError> {
    // What is mapped takes no memory; before Linux 6.16 the file can't be.
    let btf = Btf::from_file_with_backend(path, Backend::Mmap)
        .or_else(|_| Btf::from_file(path))
        .map_err(|source| ProbeError::NoBtf { path: path.into(), source })?;
    let offset = |field: &'static str| offset_of(&btf, field).ok_or(ProbeError::MissingField { field });
    let bits = |field: &'static str| bits_of(&btf, field).ok_or(ProbeError::MissingField { field });
    let (user_locks, repair) = (bits("sock.sk_userlocks")?, bits("tcp_sock.repair")?);
    // Kernels without MPTCP have none of its fields.
    let of_mptcp = |field| offset_of(&btf, field).unwrap_or(0);
    let offsets = SocketOffsets {
        family: offset("sock.__sk_common.skc_family")?,
        local_port: offset("sock.__sk_common.skc_num")?,
        source_port: offset("inet_sock.inet_sport")?,
        remote_port: offset("sock.__sk_common.skc_dport")?,
        local_ipv4: offset("sock.__sk_common.skc_rcv_saddr")?,
        remote_ipv4: offset("sock.__sk_common.skc_daddr")?,
        local_ipv6: offset("sock.__sk_common.skc_v6_rcv_saddr")?,
        remote_ipv6: offset("sock.__sk_common.skc_v6_daddr")?,
        net: offset("sock.__sk_common.skc_net.net")?,
        net_inode: offset("net.ns.inum")?,
        net_cookie: offset("net.net_cookie")?,
        cgroup: offset("sock.sk_cgrp_data.cgroup")?,
        cgroup_node: offset("cgroup.kn")?,
        node_id: offset("kernfs_node.id")?,
        flags: offset("sock.__sk_common.skc_flags")?,
        error: offset("sock.sk_err")?,
        error_soft: offset("sock.sk_err_soft")?,
        bytes_sent: offset("tcp_sock.bytes_sent")?,
        bytes_retrans: offset("tcp_sock.bytes_retrans")?,
        bytes_received: offset("tcp_sock.bytes_received")?,
        total_retrans: offset("tcp_sock.total_retrans")?,
        // Of the three samples the first is the minimum.
        rtt_min: offset("tcp_sock.rtt_min.s")? + offset("minmax_sample.v")?,
        state: offset("sock.__sk_common.skc_state")?,
        protocol: offset("sock.sk_protocol")?,
        callback_flags: offset("tcp_sock.bpf_sock_ops_cb_flags")?,
        bind_bucket: offset("inet_connection_sock.icsk_bind_hash")?,
        fast_reuse: offset("inet_bind_bucket.fastreuse")?,
        socket_sk: offset("socket.sk")?,
        cgroup_root: offset("cgroup.root")?,
        hierarchy_id: offset("cgroup_root.hierarchy_id")?,
        cgroup_level: offset("cgroup.level")?,
        // Came with Linux 6.1; 0 where there are none.
        cgroup_ancestors: offset_of(&btf, "cgroup.ancestors").unwrap_or(0),
        user_locks: user_locks / 8,
        user_locks_shift: user_locks % 8,
        segments_out: offset("tcp_sock.segs_out")?,
        task_group: offset("task_struct.tgid")?,
        task_namespaces: offset("task_struct.nsproxy")?,
        namespaces_net: offset("nsproxy.net_ns")?,
        program_aux: offset("bpf_prog.aux")?,
        aux_id: offset("bpf_prog_aux.id")?,
        aux_name: offset("bpf_prog_aux.name")?,
        repair: repair / 8,
        repair_shift: repair % 8,
        mptcp_subflows: of_mptcp("mptcp_sock.conn_list"),
        subflow_node: of_mptcp("mptcp_subflow_context.node"),
        subflow_socket: of_mptcp("mptcp_subflow_context.tcp_sock"),
    };
    Ok(Kernel { offsets, btf })
}

/// Byte offset of `struct.member.member…`; `None` when there is no such member or it is within a byte.
fn offset_of(btf: &Btf, path: &str) -> Option<u32> {
    let bits = bits_of(btf, path)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Offset of `struct.member.member…` in bits; `None` when there is no such member.
fn bits_of(btf: &Btf, path: &str) -> Option<u32> {
    let mut names = path.split('.');
    let candidates = btf.resolve_types_by_name(names.next()?).ok()?;
    let mut current = candidates.into_iter().find(|candidate| matches!(candidate, Type::Struct(_)))?;
    let mut bits = 0;
    for name in names {
        let (member_bits, member) = find_member(btf, as_struct(btf, current)?, name)?;
        bits += member_bits;
        current = member;
    }
    Some(bits)
}

/// A member and its offset in bits, looked for in unnamed members too, as C does.
fn find_member(btf: &Btf, parent: Struct, name: &str) -> Option<(u32, Type)> {
    for member in &parent.members {
        let member_name = btf.resolve_name(member).unwrap_or_default();
        let member_type = btf.resolve_chained_type(member).ok()?;
        if member_name == name {
            return Some((member.bit_offset(), member_type));
        }
        if member_name.is_empty()
            && let Some(unnamed) = as_struct(btf, member_type)
            && let Some((bits, found)) = find_member(btf, unnamed, name)
        {
            return Some((member.bit_offset() + bits, found));
        }
    }
    None
}

/// The struct or union behind names and qualifiers.
fn as_struct(btf: &Btf, mut current: Type) -> Option<Struct> {
    loop {
        let chained: &dyn BtfType = match &current {
            Type::Struct(found) | Type::Union(found) => return Some(found.clone()),
            Type::Typedef(alias) => alias,
            Type::Const(qualified) | Type::Volatile(qualified) | Type::Restrict(qualified) => qualified,
            Type::TypeTag(tagged) => tagged,
            _ => return None,
        };
        current = btf.resolve_chained_type(chained).ok()?;
    }
}
