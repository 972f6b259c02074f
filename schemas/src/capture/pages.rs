//! Reading the rows of one row group.
//!
//! The Parquet reader makes a compressor and a decompressor for every column of every row group, and each asks the
//! processor what it can do, which a virtual machine answers in microseconds: for files of some thousand rows, that was a
//! third of all time. So pages are read as they are, and decompressed here with one decompressor per thread.

use std::{cell::RefCell, fs::File, io::Cursor, path::Path, sync::Arc};

use arrow::{
    array::{Array as _, AsArray, RecordBatch, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, FieldRef, Fields, Int32Type, Int64Type, Schema, SchemaRef},
    error::ArrowError,
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ARROW_SCHEMA_META_KEY, FieldLevels, ProjectionMask,
        arrow_reader::{ParquetRecordBatchReader, RowGroups, RowSelection},
        parquet_to_arrow_field_levels, parquet_to_arrow_schema,
    },
    basic::Compression,
    column::page::{Page, PageIterator, PageMetadata, PageReader},
    errors::ParquetError,
    file::{
        metadata::{
            ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, ParquetStatisticsPolicy, RowGroupMetaData,
        },
        reader::ChunkReader,
        serialized_reader::SerializedPageReader,
    },
    schema::types::TypePtr,
};

use super::contained::{Contained, contained};
use crate::table::{numbers_of, of_length, of_number};

type Result<T, E = ParquetError> = std::result::Result<T, E>;

/// An open file of a known schema.
pub struct Pages {
    source: Source,
    metadata: ParquetMetaData,
}

/// Where bytes come from: small files are read at once.
enum Source {
    Memory(Arc<Bytes>),
    File(Arc<File>),
}

impl Pages {
    /// Opens a file.
    ///
    /// # Errors
    /// It can't be read, or its footer is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let source = if file.metadata()?.len() <= AT_ONCE_BYTES {
            Source::Memory(Arc::new(std::fs::read(path)?.into()))
        } else {
            Source::File(Arc::new(file))
        };
        let metadata = contained(|| {
            let mut reader = ParquetMetaDataReader::new().with_metadata_options(Some(without_statistics()));
            match &source {
                Source::Memory(bytes) => reader.try_parse(&**bytes)?,
                Source::File(file) => reader.try_parse(&**file)?,
            }
            reader.finish()
        })?;
        Ok(Self { metadata, source })
    }

    /// Rows of every row group.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        self.metadata.row_groups().iter().map(|group| group.num_rows() as usize)
    }

    /// Reads columns of one row group; of the rows, those that are selected. `known` is the schema of the dataset: a
    /// column that may be null and is not in the file, as an older minor version wrote it, is null, and one of a type that
    /// other tools make of it is converted.
    ///
    /// # Errors
    /// A column is not there, has another type, or a value that no row can have.
    pub fn read(
        &self,
        group: usize,
        known: &SchemaRef,
        columns: &[&str],
        selected: Option<RowSelection>,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, ArrowError>> + use<>> {
        let (reader, wanted) = contained(|| {
            let (levels, wanted) = self.levels(known, columns)?;
            let group = Group { pages: self, metadata: self.metadata.row_group(group) };
            let reader = ParquetRecordBatchReader::try_new_with_row_groups(&levels, &group, BATCH_ROWS, selected)?;
            Ok::<_, ParquetError>((reader, wanted))
        })?;
        Ok(Contained(Some(reader.map(move |batch| {
            let batch = batch?;
            let batch = match &wanted {
                Some(schema) => converted(&batch, schema)?,
                None => batch,
            };
            check_values(&batch)?;
            Ok(batch)
        }))))
    }

    /// How some columns are made of the file's; files are mostly like the one before.
    /// Where the file lacks some or has them with other types, the schema of what is wanted is returned too.
    fn levels(&self, known: &SchemaRef, columns: &[&str]) -> Result<(Arc<FieldLevels>, Option<SchemaRef>)> {
        let file = self.metadata.file_metadata();
        let schema = file.schema_descr();
        let arrow = file.key_value_metadata().and_then(|pairs| {
            pairs.iter().find(|pair| pair.key == ARROW_SCHEMA_META_KEY).and_then(|pair| pair.value.as_deref())
        });
        let of_last = |last: &Option<Levels>| {
            let is_this = |last: &&Levels| {
                let is_same_file = *last.schema == *schema.root_schema() && last.arrow.as_deref() == arrow;
                is_same_file && last.columns == columns && Arc::ptr_eq(&last.known, known)
            };
            last.as_ref().filter(is_this).map(|last| (Arc::clone(&last.levels), last.wanted.clone()))
        };
        if let Some(levels) = LAST_LEVELS.with_borrow(of_last) {
            return Ok(levels);
        }
        let mask = ProjectionMask::columns(schema, columns.iter().copied());
        // Text is read into dictionaries, whatever it was written from.
        let as_read = |field: &FieldRef| match known.field_with_name(field.name()) {
            Ok(of_known) if is_text(field.data_type()) && is_text(of_known.data_type()) => {
                Arc::new(field.as_ref().clone().with_data_type(of_known.data_type().clone()))
            }
            _ => Arc::clone(field),
        };
        let fields: Fields =
            parquet_to_arrow_schema(schema, file.key_value_metadata())?.fields.iter().map(as_read).collect();
        let wanted = known.fields().iter().filter(|field| columns.contains(&field.name().as_str()));
        let is_as_wanted = |field: &FieldRef| match fields.find(field.name()) {
            Some((_, of_file)) => of_file.data_type() == field.data_type(),
            None => !field.is_nullable(),
        };
        let differs = !wanted.clone().all(is_as_wanted);
        let wanted = differs.then(|| Arc::new(Schema::new(wanted.cloned().collect::<Fields>())));
        let levels = Arc::new(parquet_to_arrow_field_levels(schema, mask, Some(&fields))?);
        LAST_LEVELS.set(Some(Levels {
            schema: schema.root_schema_ptr(),
            arrow: arrow.map(str::to_owned),
            known: Arc::clone(known),
            columns: columns.iter().map(|column| (*column).to_owned()).collect(),
            levels: Arc::clone(&levels),
            wanted: wanted.clone(),
        }));
        Ok((levels, wanted))
    }

    fn column(&self, group: &RowGroupMetaData, column: usize) -> Result<Box<dyn PageReader>> {
        match &self.source {
            Source::Memory(bytes) => column_of(bytes, group, column),
            Source::File(file) => column_of(file, group, column),
        }
    }
}

/// Whether what other writers make of a column's type can be read: of version 1 of the schema, and of tools that read a
/// capture and write it again, other widths of numbers, names of list elements, units of time and ways to keep text.
pub(super) fn is_readable(of_file: &DataType, known: &DataType) -> bool {
    let is_number = |of: &DataType| of.is_integer();
    match (of_file, known) {
        (a, b) if is_text(a) && is_text(b) || is_number(a) && is_number(b) => true,
        (DataType::Timestamp(_, Some(_)), DataType::Timestamp(_, Some(_))) => true,
        (
            DataType::List(a) | DataType::LargeList(a) | DataType::FixedSizeList(a, _),
            DataType::List(b) | DataType::FixedSizeList(b, _),
        ) => is_readable(a.data_type(), b.data_type()),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| a.name() == b.name() && is_readable(a.data_type(), b.data_type()))
        }
        (a, b) => a == b,
    }
}

fn is_text(of: &DataType) -> bool {
    match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// The batch with the columns of a schema: those that it lacks are null.
fn converted(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |field: &FieldRef| match batch.column_by_name(field.name()) {
        Some(found) if found.data_type() == field.data_type() => Ok(Arc::clone(found)),
        Some(found) => cast_with_options(found, field.data_type(), &CastOptions { safe: false, ..Default::default() }),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Result<_, _>>()?;
    RecordBatch::try_new(Arc::clone(schema), columns)
}

/// Refuses what no row can have: ports that are none, counts below zero, texts without an end.
fn check_values(batch: &RecordBatch) -> Result<(), ArrowError> {
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let refused =
            |what: String| Err(ArrowError::InvalidArgumentError(format!("{what} in column `{}`", field.name())));
        // Ports are all that is as wide as they are in a dataset.
        if let Some(ports) = column.as_primitive_opt::<Int32Type>() {
            let is_none = |port: &i32| u16::try_from(*port).is_err();
            if ports.values().iter().any(is_none)
                && let Some(port) = ports.iter().flatten().find(is_none)
            {
                return refused(format!("{port} is not a port"));
            }
        } else if let Some(numbers) = column.as_primitive_opt::<Int64Type>() {
            let known = numbers_of(field.name());
            let is_none = |number: &i64| !known.contains(number);
            if numbers.values().iter().any(is_none)
                && let Some(number) = numbers.iter().flatten().find(is_none)
            {
                return refused(format!("{number} {}", of_number(number, field.name()).unwrap_or_default()));
            }
        } else if let Some(texts) = column.as_dictionary_opt::<Int32Type>()
            && let Some(texts) = texts.values().as_string_opt::<i32>()
            && let Some(reason) = texts.offsets().lengths().find_map(|length| of_length(length, field.name()))
        {
            return refused(format!("a text {reason}"));
        }
    }
    Ok(())
}

/// Says that nothing is wanted of a footer but where the columns are.
fn without_statistics() -> ParquetMetaDataOptions {
    ParquetMetaDataOptions::new()
        .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll)
}

fn column_of<R: ChunkReader + 'static>(
    source: &Arc<R>,
    group: &RowGroupMetaData,
    column: usize,
) -> Result<Box<dyn PageReader>> {
    let (column, rows) = (group.column(column), group.num_rows() as usize);
    if !matches!(column.compression(), Compression::ZSTD(_)) {
        return Ok(Box::new(SerializedPageReader::new(Arc::clone(source), column, rows, None)?));
    }
    // Told that nothing is compressed, the reader hands pages out as they are.
    let plain = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
    Ok(Box::new(Decompressed(SerializedPageReader::new(Arc::clone(source), &plain, rows, None)?)))
}

/// One row group of a file.
struct Group<'a> {
    pages: &'a Pages,
    metadata: &'a RowGroupMetaData,
}

impl RowGroups for Group<'_> {
    fn num_rows(&self) -> usize {
        self.metadata.num_rows() as usize
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let reader = self.pages.column(self.metadata, column)?;
        Ok(Box::new(OneColumn(Some(reader))))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(std::iter::once(self.metadata))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.pages.metadata
    }
}

/// The pages of one column of one row group.
struct OneColumn(Option<Box<dyn PageReader>>);

impl Iterator for OneColumn {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take().map(Ok)
    }
}

impl PageIterator for OneColumn {}

/// Pages that are zstd within.
struct Decompressed<R: ChunkReader>(SerializedPageReader<R>);

impl<R: ChunkReader> Iterator for Decompressed<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<R: ChunkReader> PageReader for Decompressed<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.0.get_next_page()?.map(decompressed).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.0.at_record_boundary()
    }
}

fn decompressed(mut page: Page) -> Result<Page> {
    match &mut page {
        Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => *buf = decompress(buf, 0)?,
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. } => {
            if std::mem::take(is_compressed) {
                *buf = decompress(buf, (*def_levels_byte_len + *rep_levels_byte_len) as usize)?;
            }
        }
    }
    Ok(page)
}

/// Decompresses what comes after so many bytes, which stay as they are.
fn decompress(bytes: &Bytes, plain: usize) -> Result<Bytes> {
    let damaged = || ParquetError::General("a page is shorter than it says".into());
    let (levels, values) = bytes.split_at_checked(plain).ok_or_else(damaged)?;
    if values.is_empty() {
        return Ok(bytes.clone());
    }
    let told = zstd::zstd_safe::get_frame_content_size(values)
        .map_err(|_| ParquetError::General("a page is not zstd".into()))?;
    let length = told.and_then(|told| usize::try_from(told).ok()).filter(|length| *length <= PAGE_BYTES);
    let length = length.ok_or_else(|| ParquetError::General(format!("a page says that it has {told:?} bytes")))?;
    let mut out = Vec::with_capacity(plain + length);
    out.extend_from_slice(levels);
    let mut end = Cursor::new(&mut out);
    end.set_position(plain as u64);
    DECOMPRESSOR.with_borrow_mut(|decompressor| match decompressor {
        Some(decompressor) => decompressor.decompress_to_buffer(values, &mut end),
        none => none.insert(zstd::bulk::Decompressor::new()?).decompress_to_buffer(values, &mut end),
    })?;
    Ok(out.into())
}

/// How some columns of a schema are read.
struct Levels {
    schema: TypePtr,
    /// As Arrow has it, which tells more.
    arrow: Option<String>,
    known: SchemaRef,
    columns: Vec<String>,
    levels: Arc<FieldLevels>,
    wanted: Option<SchemaRef>,
}

thread_local! {
    static LAST_LEVELS: RefCell<Option<Levels>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Rows of a batch, at most.
const BATCH_ROWS: usize = 8192;
/// Files up to this size are read at once.
const AT_ONCE_BYTES: u64 = 16 << 20;
/// A page of more bytes is damage: writers begin a new one after a megabyte or so.
const PAGE_BYTES: usize = 1 << 30;
