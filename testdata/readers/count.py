"""Counts the rows of a capture's datasets as other tools read them: count.py CAPTURE READER…

Prints `READER DATASET ROWS` a line each; a reader gets nothing but the dataset's directory.
"""

import sys


def duckdb(path):
    import duckdb

    files = f"read_parquet('{path}/**/*.parquet', hive_partitioning = true)"
    return duckdb.connect().execute(f"select count(*) from {files}").fetchall()[0][0]


def pandas(path):
    import pandas

    return len(pandas.read_parquet(path))


def pyarrow(path):
    import pyarrow.dataset

    return pyarrow.dataset.dataset(path, partitioning="hive").count_rows()


def polars(path):
    import polars

    return len(polars.read_parquet(path))


def spark(path):
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    return session.getOrCreate().read.parquet(path).count()


def delta(path):
    """As a table of Delta Lake, in place: Spark, Trino, Athena and Databricks read it."""
    from deltalake import DeltaTable, Field, Schema, convert_to_deltalake

    hive = Schema([Field("date", "string", True), Field("hour", "string", True)])
    convert_to_deltalake(path, partition_by=hive, partition_strategy="hive")
    return DeltaTable(path).count()


def iceberg(path):
    """As a table of Iceberg, whose metadata lie elsewhere: the files are added as they are."""
    import glob
    import tempfile

    import pyarrow.parquet
    from pyiceberg.catalog.sql import SqlCatalog

    with tempfile.TemporaryDirectory() as warehouse:
        catalog = SqlCatalog("c", uri=f"sqlite:///{warehouse}/c.db", warehouse=f"file://{warehouse}")
        catalog.create_namespace("flowscribe")
        files = sorted(glob.glob(f"{path}/**/*.parquet", recursive=True))
        # Iceberg names the values of dictionaries by their type.
        schema = pyarrow.schema(
            [
                field.with_type(field.type.value_type) if pyarrow.types.is_dictionary(field.type) else field
                for field in pyarrow.parquet.read_schema(files[0])
            ]
        )
        table = catalog.create_table("flowscribe.t", schema=schema)
        table.add_files(files)
        return table.scan().to_arrow().num_rows


if __name__ == "__main__":
    capture, *readers = sys.argv[1:]
    for reader in readers:
        for dataset in ("flows", "inventory", "health"):
            print(reader, dataset, globals()[reader](f"{capture}/{dataset}"))
