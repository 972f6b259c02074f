//! The requests of a segment of the journal: how they are written, and found again, also behind what a disk has damaged.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    sync::Arc,
};

use delivery::otlp::{Decoded, Decoder, Malformed};
use schemas::{capture::Origin, hour::Hour};

/// Whose rows a request has, and of which hour the first is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Of {
    pub(super) origins: BTreeSet<Origin>,
    pub(super) hour: i64,
}

impl Of {
    /// Of rows that are sorted.
    pub(crate) fn new(rows: &Decoded) -> Self {
        let time = rows.flows.first().map(|row| row.window_end);
        let time = time.or(rows.inventory.first().map(|row| row.observed_at));
        let time = time.or(rows.health.first().map(|row| row.window_end)).unwrap_or_default();
        // Mostly all rows are of one run: no need to share more than one.
        let mut origins = BTreeSet::new();
        let mut last: Option<Origin> = None;
        let mut add = |origin: (&Arc<str>, &Arc<str>, &Arc<str>)| {
            let is_last = last
                .as_ref()
                .is_some_and(|last| (&last.run_id, &last.node, &last.cluster) == (origin.2, origin.1, origin.0));
            if !is_last {
                let origin =
                    Origin { cluster: Arc::clone(origin.0), node: Arc::clone(origin.1), run_id: Arc::clone(origin.2) };
                last = Some(origin.clone());
                origins.insert(origin);
            }
        };
        rows.flows.iter().for_each(|row| add((&row.cluster, &row.node, &row.run_id)));
        rows.inventory.iter().for_each(|row| add((&row.cluster, &row.node, &row.run_id)));
        rows.health.iter().for_each(|row| add((&row.cluster, &row.node, &row.run_id)));
        Self { origins, hour: Hour::of(time).0 }
    }
}

/// A request as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Packed<'a> {
    /// A protobuf message.
    Plain(&'a [u8]),
    /// One that is compressed with gzip.
    Gzip(&'a [u8]),
    /// One that is compressed with zstd.
    Zstd(&'a [u8]),
}

impl Packed<'_> {
    /// An entry of a segment: length, checksum, how it is compressed, and the request.
    pub(super) fn frame(self) -> io::Result<Vec<u8>> {
        let compressed;
        let (how, body) = match self {
            Self::Gzip(body) => (GZIP, body),
            Self::Zstd(body) => (ZSTD, body),
            Self::Plain(body) => {
                compressed = zstd::bulk::compress(body, ZSTD_LEVEL)?;
                (ZSTD, &*compressed)
            }
        };
        let mut frame = Vec::with_capacity(HEAD_BYTES + body.len());
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        frame.extend(length.to_le_bytes());
        frame.extend(crc32fast::hash(body).to_le_bytes());
        frame.push(how);
        frame.extend(body);
        Ok(frame)
    }
}

/// Reads the requests of a segment.
pub(super) struct SegmentReader {
    file: File,
    /// Bytes of entries that were acknowledged and that the disk has damaged.
    pub(super) lost_bytes: u64,
}

impl SegmentReader {
    pub(super) const fn new(file: File) -> Self {
        Self { file, lost_bytes: 0 }
    }

    /// Finds the whole entries of a segment of an earlier process. What was cut at its end was never acknowledged; what is
    /// damaged before that was.
    pub(super) fn find(&mut self) -> io::Result<Vec<(u64, Of)>> {
        let length = self.file.metadata()?.len();
        let (mut at, mut entries) = (0, Vec::new());
        while at < length {
            match self.entry(at) {
                Ok((rows, next)) => {
                    entries.push((at, Of::new(&rows)));
                    at = next;
                }
                Err(error) => match self.next_after(at, length)? {
                    Some(next) => {
                        tracing::error!(%error, at, bytes = next - at, "a part of the journal is damaged, it is lost");
                        self.lost_bytes += next - at;
                        at = next;
                    }
                    None => {
                        tracing::warn!(%error, at, length, "a segment ends in a request that was not acknowledged");
                        break;
                    }
                },
            }
        }
        Ok(entries)
    }

    /// Where, after an entry that can't be read, the next one begins that can be; or the end, where it is as long as it says.
    fn next_after(&mut self, at: u64, length: u64) -> io::Result<Option<u64>> {
        let by_length = match self.head(at) {
            Ok(head) => at + HEAD_BYTES as u64 + u64::from(head.length),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        if by_length == length || by_length < length && self.entry(by_length).is_ok() {
            return Ok(Some(by_length));
        }
        // Its length is what is damaged.
        let mut rest = Vec::new();
        self.file.seek(SeekFrom::Start(at))?;
        (&mut self.file).take(length - at).read_to_end(&mut rest)?;
        let mut budget = SEARCHED_BYTES;
        for start in 1..rest.len().saturating_sub(HEAD_BYTES) {
            let (head, bodies) = rest[start..].split_at(HEAD_BYTES);
            let head = Head::of(head);
            let Some(body) = bodies.get(..head.length as usize).filter(|_| [ZSTD, GZIP].contains(&head.how)) else {
                continue;
            };
            budget = budget.saturating_sub(body.len() as u64);
            if budget == 0 {
                break;
            }
            if crc32fast::hash(body) == head.checksum && self.entry(at + start as u64).is_ok() {
                return Ok(Some(at + start as u64));
            }
        }
        Ok(None)
    }

    /// The rows of the entry at a place; none where the disk has damaged it.
    pub(super) fn read_or_skip(&mut self, at: u64) -> io::Result<Decoded> {
        match self.entry(at) {
            Ok((rows, _)) => Ok(rows),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(%error, at, "a request in the journal is damaged, it is lost");
                self.lost_bytes += self.head(at).map_or(0, |head| HEAD_BYTES as u64 + u64::from(head.length));
                Ok(Decoded::default())
            }
            Err(error) => Err(error),
        }
    }

    fn head(&mut self, at: u64) -> io::Result<Head> {
        let mut head = [0; HEAD_BYTES];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut head)?;
        Ok(Head::of(&head))
    }

    /// The rows of the entry at a place, and where the next one is.
    fn entry(&mut self, at: u64) -> io::Result<(Decoded, u64)> {
        let damaged = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
        let Head { length, checksum, how } = self.head(at)?;
        let mut body = Vec::new();
        (&mut self.file).take(length.into()).read_to_end(&mut body)?;
        if body.len() != length as usize || crc32fast::hash(&body) != checksum {
            return Err(damaged("cut short or altered"));
        }
        let request = match how {
            ZSTD => zstd::stream::decode_all(&*body)?,
            GZIP => {
                let mut request = Vec::new();
                flate2::read::MultiGzDecoder::new(&*body).read_to_end(&mut request)?;
                request
            }
            _ => return Err(damaged("compressed in an unknown way")),
        };
        let rows = decode(&request).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok((rows, at + HEAD_BYTES as u64 + u64::from(length)))
    }
}

/// What is said of an entry before it.
struct Head {
    length: u32,
    checksum: u32,
    how: u8,
}

impl Head {
    /// From [`HEAD_BYTES`] bytes.
    fn of(bytes: &[u8]) -> Self {
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { length: number(0), checksum: number(4), how: bytes[8] }
    }
}

/// Reads a request with what this thread knows of earlier ones.
pub(crate) fn decode(request: &[u8]) -> Result<Decoded, Malformed> {
    thread_local! {
        static DECODER: RefCell<Decoder> = RefCell::default();
    }
    DECODER.with_borrow_mut(|decoder| decoder.decode(request))
}

const HEAD_BYTES: usize = 9;
const ZSTD: u8 = 1;
const GZIP: u8 = 2;
const ZSTD_LEVEL: i32 = 1;
/// Most bytes that are looked through for the next entry after one whose length is damaged.
const SEARCHED_BYTES: u64 = 4 << 30;

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use delivery::otlp::Encoder;
    use proptest::prelude::*;
    use schemas::{flow::FlowRecord, table::TimestampMs};

    use super::*;

    /// A request with rows of these numbers.
    pub(crate) fn request(seqs: std::ops::Range<i64>) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), "1");
        seqs.for_each(|seq| {
            encoder.push(&FlowRecord { seq, run_id: "run".into(), ..FlowRecord::default() }, TimestampMs(0))
        });
        encoder.finish().expect("there are rows")
    }

    fn segment(bytes: &[u8]) -> SegmentReader {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        SegmentReader::new(file)
    }

    proptest! {
        #[test]
        fn of_a_segment_that_is_cut_the_whole_requests_are_found(cut in 0.0..1.0) {
            let frames: Vec<Vec<u8>> = (0..4)
                .map(|number| Packed::Plain(&request(number * 10..number * 10 + 10)).frame().expect("it is compressed"))
                .collect();
            let bytes = frames.concat();
            let end = (bytes.len() as f64 * cut) as usize;
            let mut reader = segment(&bytes[..end]);
            let found = reader.find().expect("it is read");
            let whole = (1..=4).filter(|count| frames[..*count].concat().len() <= end).count();
            prop_assert_eq!(found.len(), whole);
            let rows = found.iter().map(|(at, _)| reader.read_or_skip(*at).expect("it is read").flows.len());
            prop_assert_eq!(rows.sum::<usize>(), whole * 10);
        }

        #[test]
        fn of_a_segment_that_is_altered_all_other_requests_are_found(
            damaged in 0..9_usize, at in any::<prop::sample::Index>(), bit in 0..8_u8,
        ) {
            let frames: Vec<Vec<u8>> = (0..10)
                .map(|number| Packed::Plain(&request(number * 10..number * 10 + 10)).frame().expect("it is compressed"))
                .collect();
            let mut bytes = frames.concat();
            let begin = frames[..damaged].concat().len();
            bytes[begin + at.index(frames[damaged].len())] ^= 1 << bit;
            let mut reader = segment(&bytes);
            let found = reader.find().expect("it is read");
            let rows = |reader: &mut SegmentReader, at| reader.read_or_skip(at).expect("it is read").flows.len();
            let rows: usize = found.iter().map(|(at, _)| rows(&mut reader, *at)).sum();
            prop_assert_eq!((rows, reader.lost_bytes), (90, frames[damaged].len() as u64));
        }

        #[test]
        fn garbage_is_no_request(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(segment(&bytes).find().expect("it is read"), []);
        }
    }
}
