select
    'egress' as direction, source_namespace as namespace, source_workload_kind as workload_kind,
    source_workload as workload, destination_address as peer_address, transport, port, fate, fate_reason, hours, days,
    connections, failed, bytes_sent, bytes_received, first_seen, last_seen
from communications
where destination_kind = 'external'
union all
select
    'ingress', destination_namespace, destination_workload_kind, destination_workload, source_address, transport, port,
    fate, fate_reason, hours, days, connections, failed, bytes_sent, bytes_received, first_seen, last_seen
from communications
where source_kind = 'external'
