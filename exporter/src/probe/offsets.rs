//! Where the running kernel keeps the fields of a socket, read from its BTF.
//!
//! Rust has no relocations for kernel types, so the programs take offsets from a read-only global instead; the verifier
//! sees them as constants.

use schemas::event::SocketOffsets;

use super::{ProbeError, btf::Types};

/// Finds every offset.
///
/// # Errors
/// The kernel lacks a field.
pub(super) fn find(types: &Types<'_>) -> Result<SocketOffsets, ProbeError> {
    let offset = |field: &'static str| offset_of(types, field).ok_or(ProbeError::MissingField { field });
    let bits = |field: &'static str| types.bits_of(field).ok_or(ProbeError::MissingField { field });
    let (user_locks, repair) = (bits("sock.sk_userlocks")?, bits("tcp_sock.repair")?);
    // Kernels without MPTCP have none of its fields.
    let of_mptcp = |field| offset_of(types, field).unwrap_or(0);
    Ok(SocketOffsets {
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
        cgroup_ancestors: offset_of(types, "cgroup.ancestors").unwrap_or(0),
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
    })
}

/// Byte offset of `struct.member.member…`; `None` when there is no such member or it is within a byte.
fn offset_of(types: &Types<'_>, path: &str) -> Option<u32> {
    let bits = types.bits_of(path)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
