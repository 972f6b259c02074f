//! A capture as a table of Spark, Delta Lake and Iceberg.

use crate::{harness::Ran, readers::assert_all_rows_are_counted};

tests![spark_counts_all_rows, delta_lake_and_iceberg_take_a_capture_in_place];

fn spark_counts_all_rows() -> Ran {
    assert_all_rows_are_counted(&[("spark", "pyspark")])
}

fn delta_lake_and_iceberg_take_a_capture_in_place() -> Ran {
    assert_all_rows_are_counted(&[("delta", "deltalake"), ("iceberg", "pyiceberg")])
}
