-- Who talked to whom, per hour: both ends resolved at the time of the flow, the two observers of an edge made one.
--
-- A connection between two recorded pods is seen from both ends. Its client knows the address it dialled, its server
-- the pod that answered; resolved, both name the same edge, and the counts are the larger of the two sums, never their
-- sum. A Service that was dialled becomes an edge to every workload that may have answered (`via_service`).
--
-- Left out: what stays on loopback or within one pod, and rows whose direction the kernel could not tell.
with named as (
    select
        cluster, node, run_id, seq,
        -- A window that ends at the full hour belongs to the hour it lies in.
        date_trunc('hour', window_end - interval '1 millisecond') as hour,
        observer, transport, source_address, destination_address, destination_port as dialled_port,
        source_end(
            observer, source_kind, source_namespace, source_workload_kind, source_workload, source_pod_uid,
            source_node, source_host_network, node, source_address, first_seen, last_seen
        ) as source,
        unnest(destination_ends(
            observer, destination_kind, destination_namespace, destination_workload_kind, destination_workload,
            destination_pod_uid, destination_node, destination_host_network, node, destination_address,
            first_seen, last_seen, transport, destination_port
        )) as destination,
        connections, failed, closed, active, failure, bytes_sent, bytes_received, retransmits, duration_ms_sum,
        first_seen, last_seen
    from flows
    where direction_known and not is_loopback(source_address)
),
resolved as (
    select
        *,
        case observer when 'client' then source else destination['end'] end as own_end,
        case observer when 'client' then destination['end'] else source end as other_end
    from named
),
-- Where an address does not tell its owner for certain: what the other end of the connection said of itself.
told as (
    select
        mine.cluster, mine.node, mine.run_id, mine.seq, mine.observer,
        min(theirs.own_end['kind']) as kind,
        min(theirs.own_end['namespace']) as namespace,
        min(theirs.own_end['workload_kind']) as workload_kind,
        min(theirs.own_end['workload']) as workload,
        min(theirs.own_end['pod_uid']) as pod_uid,
        min(theirs.own_end['node']) as host,
        min(theirs.own_end['address']) as address
    from (select * from resolved where other_end['unknown_reason'] in ('ambiguous', 'no_owner', 'no_inventory')) as mine
    join (select * from resolved where own_end['kind'] in ('pod', 'node')) as theirs
        on theirs.cluster = mine.cluster
        and theirs.transport = mine.transport
        and theirs.source_address = mine.source_address
        and theirs.destination_address = mine.destination_address
        and theirs.dialled_port = mine.dialled_port
        and theirs.observer <> mine.observer
        and theirs.first_seen <= mine.last_seen
        and theirs.last_seen >= mine.first_seen
    group by mine.cluster, mine.node, mine.run_id, mine.seq, mine.observer
    having count(distinct coalesce(theirs.own_end['pod_uid'], theirs.own_end['node'])) = 1
),
ends as (
    select
        r.hour, r.cluster, r.observer, r.transport, r.dialled_port,
        coalesce(s.kind, r.source['kind']) as source_kind,
        coalesce(s.namespace, r.source['namespace']) as source_namespace,
        coalesce(s.workload_kind, r.source['workload_kind']) as source_workload_kind,
        coalesce(s.workload, r.source['workload']) as source_workload,
        coalesce(s.pod_uid, r.source['pod_uid']) as source_pod_uid,
        coalesce(s.host, r.source['node']) as source_host,
        case when s.seq is null then r.source['address'] else s.address end as source_address,
        case when s.seq is null then r.source['unknown_reason'] end as source_unknown_reason,
        coalesce(d.kind, r.destination['end']['kind']) as destination_kind,
        coalesce(d.namespace, r.destination['end']['namespace']) as destination_namespace,
        coalesce(d.workload_kind, r.destination['end']['workload_kind']) as destination_workload_kind,
        coalesce(d.workload, r.destination['end']['workload']) as destination_workload,
        coalesce(d.pod_uid, r.destination['end']['pod_uid']) as destination_pod_uid,
        coalesce(d.host, r.destination['end']['node']) as destination_host,
        case when d.seq is null then r.destination['end']['address'] else d.address end as destination_address,
        case when d.seq is null then r.destination['end']['unknown_reason'] end as destination_unknown_reason,
        r.destination['port'] as port,
        r.destination['service'] as service,
        r.destination['via_service'] as via_service,
        r.destination['sole'] as sole,
        r.connections, r.failed, r.closed, r.active, r.failure, r.bytes_sent, r.bytes_received, r.retransmits,
        r.duration_ms_sum, r.first_seen, r.last_seen
    from resolved as r
    left join told as s
        on s.observer = 'server'
        and s.cluster = r.cluster and s.node = r.node and s.run_id = r.run_id and s.seq = r.seq
    left join told as d
        on d.observer = 'client'
        and d.cluster = r.cluster and d.node = r.node and d.run_id = r.run_id and d.seq = r.seq
),
keyed as (
    select
        *,
        case when source_kind = 'node' then source_host end as source_node,
        case when destination_kind = 'node' then destination_host end as destination_node,
        -- A pod's own node may always reach it.
        source_kind = 'node' and coalesce(source_host = destination_host, false) as own_node
    from ends
    where source_pod_uid is null or destination_pod_uid is null or source_pod_uid <> destination_pod_uid
),
per_observer as (
    select
        hour, cluster, observer, transport,
        source_kind, source_namespace, source_workload_kind, source_workload, source_node, source_address,
        source_unknown_reason,
        destination_kind, destination_namespace, destination_workload_kind, destination_workload, destination_node,
        destination_address, destination_unknown_reason, port,
        own_node,
        bool_or(via_service) as via_service,
        bool_or(observer = 'server' or sole) as answered,
        array_sort(array_agg(distinct service) filter (where service is not null)) as services,
        array_sort(array_agg(distinct dialled_port)) as dialled_ports,
        array_sort(array_agg(distinct failure) filter (where failure is not null)) as failures,
        count(distinct source_pod_uid) as source_pods,
        count(distinct destination_pod_uid) as destination_pods,
        sum(connections) as connections,
        sum(failed) as failed,
        sum(closed) as closed,
        max(active) as max_active,
        sum(bytes_sent) as bytes_sent,
        sum(bytes_received) as bytes_received,
        sum(retransmits) as retransmits,
        sum(duration_ms_sum) as duration_ms_sum,
        min(first_seen) as first_seen,
        max(last_seen) as last_seen
    from keyed
    group by
        hour, cluster, observer, transport, source_kind, source_namespace, source_workload_kind, source_workload,
        source_node, source_address, source_unknown_reason, destination_kind, destination_namespace,
        destination_workload_kind, destination_workload, destination_node, destination_address,
        destination_unknown_reason, port, own_node
)
select
    hour, cluster, transport,
    source_kind, source_namespace, source_workload_kind, source_workload, source_node, source_address,
    source_unknown_reason,
    destination_kind, destination_namespace, destination_workload_kind, destination_workload, destination_node,
    destination_address, destination_unknown_reason, port,
    own_node,
    bool_or(via_service) as via_service,
    bool_or(answered) as answered,
    case when count(distinct observer) = 2 then 'both' else min(observer) end as seen_by,
    first_value(services) filter (where observer = 'client') as services,
    first_value(dialled_ports) filter (where observer = 'client') as dialled_ports,
    first_value(failures) filter (where observer = 'client') as failures,
    max(source_pods) as source_pods,
    max(destination_pods) as destination_pods,
    max(connections) as connections,
    max(failed) as failed,
    max(closed) as closed,
    max(max_active) as max_active,
    max(bytes_sent) as bytes_sent,
    max(bytes_received) as bytes_received,
    sum(retransmits) as retransmits,
    max(duration_ms_sum) as duration_ms_sum,
    min(first_seen) as first_seen,
    max(last_seen) as last_seen
from per_observer
group by
    hour, cluster, transport, source_kind, source_namespace, source_workload_kind, source_workload, source_node,
    source_address, source_unknown_reason, destination_kind, destination_namespace, destination_workload_kind,
    destination_workload, destination_node, destination_address, destination_unknown_reason, port, own_node
