"""Edges with distinct hours and pods, by DuckDB: what `flowscribe sql` answers from table `communications`.

Usage: duckdb_edges.py CAPTURE OUTPUT.csv
The capture is one that `lab generate --rows` wrote: every Service has the workload of its name behind it.
"""

import sys

import duckdb

root, output = sys.argv[1:]
db = duckdb.connect(config={"threads": 2})
db.execute(f"""
create table objects as
    select kind, namespace, name, uid, owner, workload_kind, addresses[1] as address, ports[1].port as port,
        lease_start, lease_end
    from read_parquet('{root}/inventory/**/_cluster-*.parquet', hive_partitioning = false);
create table owners as
    select namespace, name, any_value(owner) as workload from objects
    where kind = 'Workload' and workload_kind = 'ReplicaSet' group by all;
create table pods as
    select uid, address, lease_start, lease_end, p.namespace || '/' || owners.workload as workload
    from (select uid, any_value(namespace) as namespace, any_value(owner) as owner, any_value(address) as address,
            min(lease_start) as lease_start, coalesce(max(lease_end), 'infinity') as lease_end
        from objects where kind = 'Pod' group by uid) as p
    join owners on owners.name = p.owner and owners.namespace = p.namespace;
create table services as
    select s.address, s.port as service_port, e.target, coalesce(w.workload, e.endpoint) as backend
    from (select namespace, name, any_value(address) as address, any_value(port) as port from objects
        where kind = 'Service' group by all) as s
    join (select namespace, owner, any_value(address) as endpoint, any_value(port) as target from objects
        where kind = 'EndpointSlice' and address is not null group by all) as e
        on e.namespace = s.namespace and e.owner = s.name
    left join (select distinct namespace, name, namespace || '/' || name as workload from objects
        where kind = 'Workload' and workload_kind = 'Deployment') as w on w.namespace = s.namespace and w.name = s.name;
""")
db.execute(f"""
copy (
with flows as (
    select observer, transport, source_address, destination_address, destination_port, first_seen, connections,
        source_namespace || '/' || source_workload as source,
        destination_namespace || '/' || destination_workload as destination, source_pod_uid, destination_pod_uid,
        date_trunc('hour', window_end - interval 1 millisecond) as hour
    from read_parquet('{root}/flows/**/*.parquet', hive_partitioning = false)
),
ends as (
    select hour, observer, transport, source,
        coalesce(s.backend, case when p.lease_end >= first_seen then p.workload end, destination_address) as destination,
        coalesce(s.target, destination_port) as port, connections, source_pod_uid,
        case when s.backend is null then p.uid end as destination_pod_uid
    from flows as f
    left join services as s on s.address = f.destination_address and s.service_port = f.destination_port
    asof left join pods as p on p.address = f.destination_address and p.lease_start <= f.first_seen
    where observer = 'client'
    union all
    select hour, observer, transport, coalesce(case when p.lease_end >= first_seen then p.workload end, source_address),
        destination, destination_port, connections,
        p.uid, destination_pod_uid
    from flows as f
    asof left join pods as p on p.address = f.source_address and p.lease_start <= f.first_seen
    where observer = 'server'
),
hourly as (
    select source, destination, transport, port, hour, observer, sum(connections) as connections
    from ends group by all
),
counted as (
    select source, destination, transport, port, count(*) as hours, sum(connections) as connections
    from (select source, destination, transport, port, hour, max(connections) as connections from hourly group by all)
    group by all
),
pods_of as (
    select source, destination, transport, port, count(distinct source_pod_uid) as source_pods,
        count(distinct destination_pod_uid) as destination_pods
    from ends group by all
)
select source, destination, transport, port, hours, source_pods, destination_pods, cast(connections as bigint) as connections
from counted join pods_of using (source, destination, transport, port)
order by all
) to '{output}' (header)
""")
