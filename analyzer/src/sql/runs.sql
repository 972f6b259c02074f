-- What every agent's run says of itself, against the rows that are there.
with rows_there as (
    select
        cluster, node, run_id,
        max(seq) + 1 as next_seq,
        count(*) as row_count,
        min(window_start) as first_start,
        sum(case when direction_known then 0 else 1 end) as undirected_rows
    from flows
    group by cluster, node, run_id
),
told as (
    select
        h.cluster, h.node, h.run_id,
        min(run_start) as run_start,
        bool_or(clean_shutdown) as clean_shutdown,
        max(flows_next_seq) as next_seq,
        max(inventory_next_seq) as inventory_next_seq,
        max(seq) + 1 - count(*) as missing_health_rows,
        -- Up to here every row that was written is in a finished file.
        max(case when flows_next_seq <= coalesce(r.next_seq, 0) then window_end end) as whole_until,
        sum(lost_ring + lost_map + lost_parse + lost_queue + lost_sink + lost_end) as lost,
        sum(lost_closed) as lost_closed,
        sum(unidentified) as unidentified,
        array_to_string(array_sort(array_distinct(flatten(array_agg(filters)))), ', ') as filters
    from health as h
    left join rows_there as r on h.cluster = r.cluster and h.node = r.node and h.run_id = r.run_id
    group by h.cluster, h.node, h.run_id
),
begun as (
    select
        cluster, node, run_id,
        min(observed_at) as run_start,
        max(seq) + 1 as next_seq,
        count(*) as row_count
    from inventory
    group by cluster, node, run_id
)
select
    coalesce(told.cluster, r.cluster, begun.cluster) as cluster,
    coalesce(told.node, r.node, begun.node) as node,
    coalesce(told.run_id, r.run_id, begun.run_id) as run_id,
    coalesce(told.run_start, begun.run_start, r.first_start) as run_start,
    coalesce(told.clean_shutdown, false) as clean_shutdown,
    coalesce(told.whole_until, told.run_start, begun.run_start, r.first_start) as whole_until,
    greatest(coalesce(told.next_seq, 0), coalesce(r.next_seq, 0)) - coalesce(r.row_count, 0) as missing_flows,
    greatest(coalesce(told.inventory_next_seq, 0), coalesce(begun.next_seq, 0)) - coalesce(begun.row_count, 0)
        as missing_inventory,
    coalesce(told.missing_health_rows, 0) as missing_health,
    coalesce(told.lost, 0) as lost,
    coalesce(told.lost_closed, 0) as lost_closed,
    coalesce(told.unidentified, 0) as unidentified,
    coalesce(told.filters, '') as filters,
    coalesce(r.undirected_rows, 0) as undirected_rows
from told
full join rows_there as r on told.cluster = r.cluster and told.node = r.node and told.run_id = r.run_id
full join begun
    on begun.cluster = coalesce(told.cluster, r.cluster)
    and begun.node = coalesce(told.node, r.node)
    and begun.run_id = coalesce(told.run_id, r.run_id)
order by cluster, node, run_start, run_id
