-- Edges over the whole capture, for the policies.
select
    transport,
    source_kind, source_namespace, source_workload_kind, source_workload, source_node, source_address,
    source_unknown_reason,
    destination_kind, destination_namespace, destination_workload_kind, destination_workload, destination_node,
    destination_address, destination_unknown_reason,
    cast(port as bigint) as port,
    own_node,
    bool_or(via_service) as via_service,
    bool_or(answered) as answered,
    case when count(distinct seen_by) = 1 then min(seen_by) else 'both' end as seen_by,
    array_to_string(array_sort(array_distinct(flatten(array_agg(failures) filter (where failures is not null)))), ', ')
        as failures,
    array_to_string(array_sort(array_distinct(flatten(
        array_agg(dialled_ports) filter (where via_service and dialled_ports is not null)))), ',') as service_ports,
    sum(connections) as connections,
    sum(failed) as failed,
    sum(closed) as closed,
    max(max_active) as max_active,
    min(first_seen) as first_seen,
    max(last_seen) as last_seen
from edges
group by
    transport, source_kind, source_namespace, source_workload_kind, source_workload, source_node, source_address,
    source_unknown_reason, destination_kind, destination_namespace, destination_workload_kind, destination_workload,
    destination_node, destination_address, destination_unknown_reason, port, own_node
