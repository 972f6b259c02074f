"""Edges with distinct hours and pods, by polars: what `flowscribe sql` answers from table `communications`.

Usage: polars_edges.py CAPTURE OUTPUT.csv
The capture is one that `lab generate --rows` wrote: every Service has the workload of its name behind it.
"""

import sys

import polars as pl

root, output = sys.argv[1:]


def text(name):
    return pl.col(name).cast(pl.String)


def who(namespace, name):
    return pl.concat_str([text(namespace), pl.lit("/"), text(name)])


inventory = pl.scan_parquet(f"{root}/inventory/**/_cluster-*.parquet", hive_partitioning=False)
objects = inventory.select(
    text("kind"), text("namespace"), text("name"), text("uid"), text("owner"), text("workload_kind"),
    pl.col("addresses").list.first().alias("address"), pl.col("ports").list.first().alias("port"),
    "lease_start", "lease_end",
).collect()
owners = objects.filter((pl.col("kind") == "Workload") & (pl.col("workload_kind") == "ReplicaSet")).group_by(
    "namespace", "name").agg(pl.col("owner").drop_nulls().first().alias("workload"))
pods = (
    objects.filter(pl.col("kind") == "Pod")
    .group_by("uid")
    .agg(pl.col("namespace", "owner", "address").first(), pl.col("lease_start").min(), pl.col("lease_end").max())
    .join(owners, left_on=["namespace", "owner"], right_on=["namespace", "name"])
    .select("uid", "address", "lease_start", "lease_end", who("namespace", "workload").alias("workload"))
    .sort("lease_start")
)
deployments = objects.filter((pl.col("kind") == "Workload") & (pl.col("workload_kind") == "Deployment")).unique(
    ["namespace", "name"]).select("namespace", "name", who("namespace", "name").alias("workload"))
slices = objects.filter(pl.col("kind") == "EndpointSlice").drop_nulls("address").group_by("namespace", "owner").agg(
    pl.col("address").first().alias("endpoint"), pl.col("port").first().struct.field("port").alias("target"))
services = (
    objects.filter(pl.col("kind") == "Service")
    .unique(["namespace", "name"])
    .with_columns(pl.col("port").struct.field("port").alias("service_port"))
    .join(slices, left_on=["namespace", "name"], right_on=["namespace", "owner"])
    .join(deployments, on=["namespace", "name"], how="left")
    .select("address", "service_port", "target", pl.coalesce("workload", "endpoint").alias("backend"))
)

flows = pl.scan_parquet(f"{root}/flows/**/*.parquet", hive_partitioning=False).select(
    pl.col("observer") == "client",
    text("transport"), text("source_address"), text("destination_address"), "destination_port",
    pl.when(pl.col("source_workload").is_not_null()).then(who("source_namespace", "source_workload")).alias("source"),
    pl.when(pl.col("destination_workload").is_not_null())
    .then(who("destination_namespace", "destination_workload")).alias("destination"),
    text("source_pod_uid"), text("destination_pod_uid"), "first_seen", "connections",
    (pl.col("window_end") - pl.duration(milliseconds=1)).dt.truncate("1h").alias("hour"),
)
holders = pods.lazy().rename({"uid": "holder", "workload": "holder_workload"})


def held(rows, address):
    found = rows.sort("first_seen").join_asof(
        holders, left_on="first_seen", right_on="lease_start", by_left=address, by_right="address")
    is_over = pl.col("lease_end") < pl.col("first_seen")
    return found.with_columns(
        pl.when(~is_over.fill_null(False)).then(name).alias(name) for name in ("holder", "holder_workload"))


client = held(flows.filter("observer"), "destination_address").join(
    services.lazy(), left_on=["destination_address", "destination_port"], right_on=["address", "service_port"],
    how="left",
).select(
    "hour", "observer", "transport", "source", "connections",
    pl.coalesce("backend", "holder_workload", "destination_address").alias("destination"),
    pl.coalesce("target", "destination_port").alias("port"),
    pl.col("source_pod_uid"),
    pl.when(pl.col("backend").is_null()).then("holder").alias("destination_pod_uid"),
)
server = held(flows.filter(~pl.col("observer")), "source_address").select(
    "hour", "observer", "transport",
    pl.coalesce("holder_workload", "source_address").alias("source"), "connections", "destination",
    pl.col("destination_port").alias("port"), pl.col("holder").alias("source_pod_uid"), "destination_pod_uid",
)
edge = ["source", "destination", "transport", "port"]
ends = pl.concat([client, server.select(client.collect_schema().names())])
hourly = ends.group_by(*edge, "hour", "observer").agg(
    pl.col("connections").sum(), pl.col("source_pod_uid").unique().alias("sources"),
    pl.col("destination_pod_uid").drop_nulls().unique().alias("destinations"))
edges = hourly.group_by(*edge, "hour").agg(
    pl.col("connections").max(), pl.col("sources").explode().unique(), pl.col("destinations").explode().unique(),
).group_by(edge).agg(
    pl.len().alias("hours"), pl.col("sources").explode().drop_nulls().n_unique().alias("source_pods"),
    pl.col("destinations").explode().drop_nulls().n_unique().alias("destination_pods"), pl.col("connections").sum())
edges.sort(edge).collect(engine="streaming").write_csv(output)
