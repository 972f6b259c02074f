select
    transport, source_kind, source_namespace, source_workload_kind, source_workload, source_node, source_address,
    source_unknown_reason, destination_kind, destination_namespace, destination_workload_kind, destination_workload,
    destination_node, destination_address, destination_unknown_reason, port, via_service, services, seen_by, failed,
    failures, first_seen, last_seen
from communications
where fate = 'failed' and failed > 0
