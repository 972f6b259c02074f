-- Rows are delivered at least once; their origin and number tell repetitions.
select distinct on (cluster, node, run_id, seq) * from {dataset}_files
