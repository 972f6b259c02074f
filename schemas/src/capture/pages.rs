//! Reading the rows of one row group.
//!
//! The Parquet reader makes a compressor and a decompressor for every column of every row group, and each asks the
//! processor what it can do, which a virtual machine answers in microseconds: for files of some thousand rows, that was a
//! third of all time. So pages are read as they are, and decompressed here with one decompressor per thread.

use std::{cell::RefCell, fs::File, io::Cursor, path::Path, sync::Arc};

use arrow::{
    array::{RecordBatch, new_null_array},
    datatypes::{FieldRef, Fields, Schema, SchemaRef},
    error::ArrowError,
};
use bytes::Bytes;
use parquet::{
    arrow::{
        FieldLevels, ProjectionMask,
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
        let mut reader = ParquetMetaDataReader::new().with_metadata_options(Some(without_statistics()));
        match &source {
            Source::Memory(bytes) => reader.try_parse(&**bytes)?,
            Source::File(file) => reader.try_parse(&**file)?,
        }
        Ok(Self { metadata: reader.finish()?, source })
    }

    /// Rows of every row group.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        self.metadata.row_groups().iter().map(|group| group.num_rows() as usize)
    }

    /// Reads columns of one row group; of the rows, those that are selected. `known` is the schema of the dataset: a
    /// column that may be null and is not in the file, as an older minor version wrote it, is null.
    ///
    /// # Errors
    /// A column is not there, or has another type.
    pub fn read(
        &self,
        group: usize,
        known: &SchemaRef,
        columns: &[&str],
        selected: Option<RowSelection>,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, ArrowError>> + use<>> {
        let (levels, missing) = self.levels(known, columns)?;
        let group = Group { pages: self, metadata: self.metadata.row_group(group) };
        let reader = ParquetRecordBatchReader::try_new_with_row_groups(&levels, &group, BATCH_ROWS, selected)?;
        Ok(reader.map(move |batch| match &missing {
            Some(schema) => with_nulls(&batch?, schema),
            None => batch,
        }))
    }

    /// How some columns are made of the file's; files are mostly like the one before.
    /// Where the file lacks some, the schema of what is wanted is returned too.
    fn levels(&self, known: &SchemaRef, columns: &[&str]) -> Result<(Arc<FieldLevels>, Option<SchemaRef>)> {
        let file = self.metadata.file_metadata();
        let schema = file.schema_descr();
        let of_last = |last: &Option<Levels>| {
            let is_this = |last: &&Levels| {
                last.columns == columns && Arc::ptr_eq(&last.known, known) && *last.schema == *schema.root_schema()
            };
            last.as_ref().filter(is_this).map(|last| (Arc::clone(&last.levels), last.missing.clone()))
        };
        if let Some(levels) = LAST_LEVELS.with_borrow(of_last) {
            return Ok(levels);
        }
        let mask = ProjectionMask::columns(schema, columns.iter().copied());
        let roots = schema.root_schema().get_fields();
        let has = |field: &&FieldRef| roots.iter().any(|root| root.name() == field.name());
        let of_file: Fields = known.fields().iter().filter(has).cloned().collect();
        let is_known =
            roots.len() == of_file.len() && roots.iter().zip(&of_file).all(|(root, field)| root.name() == field.name());
        let wanted = known.fields().iter().filter(|field| columns.contains(&field.name().as_str()));
        let lacks_some = wanted.clone().any(|field| field.is_nullable() && !has(&field));
        let missing = lacks_some.then(|| Arc::new(Schema::new(wanted.cloned().collect::<Fields>())));
        // A newer minor version has more columns; what they are is then read from the file itself, which takes longer.
        let fields =
            if is_known { of_file } else { parquet_to_arrow_schema(schema, file.key_value_metadata())?.fields };
        let levels = Arc::new(parquet_to_arrow_field_levels(schema, mask, Some(&fields))?);
        if is_known {
            LAST_LEVELS.set(Some(Levels {
                schema: schema.root_schema_ptr(),
                known: Arc::clone(known),
                columns: columns.iter().map(|column| (*column).to_owned()).collect(),
                levels: Arc::clone(&levels),
                missing: missing.clone(),
            }));
        }
        Ok((levels, missing))
    }

    fn column(&self, group: &RowGroupMetaData, column: usize) -> Result<Box<dyn PageReader>> {
        match &self.source {
            Source::Memory(bytes) => column_of(bytes, group, column),
            Source::File(file) => column_of(file, group, column),
        }
    }
}

/// The batch with columns of a schema that it lacks.
fn with_nulls(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let column = |field: &FieldRef| {
        let found = batch.column_by_name(field.name()).cloned();
        found.unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
    };
    RecordBatch::try_new(Arc::clone(schema), schema.fields().iter().map(column).collect())
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
    known: SchemaRef,
    columns: Vec<String>,
    levels: Arc<FieldLevels>,
    missing: Option<SchemaRef>,
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
