//! The live stream of an agent: what it records, to those who ask for it while it does.
//!
//! A client posts to [`PATH`] with a bearer token, and the answer is a stream of frames, each an OTLP request
//! (`ExportLogsServiceRequest`) as a collector would get it: a length in four bytes, most significant first, and the
//! request compressed with zstd. An empty frame says that there is nothing to tell. Every stream is a run of its own, with
//! its own numbers of rows, and its health counts what this client did not get. The stream ends with the row of health
//! that says so once the client has ended its request: at the end of the window that is under way.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

/// Where agents serve it.
pub const PATH: &str = "/v1/flows";
/// Content type of the answer.
pub const MEDIA_TYPE: &str = "application/vnd.flowscribe.stream";
/// Header of the answer with the name of the agent's cluster.
pub const CLUSTER: &str = "flowscribe-cluster";
/// What an agent's token is for, where it is made for this.
pub const AUDIENCE: &str = "flowscribe";
/// Port that agents serve it on by default, for their own pod alone.
pub const PORT: u16 = 9465;

/// Why a stream can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum BrokenStream {
    /// It is not one of an agent.
    #[error("a frame of {bytes} bytes, more than the {FRAME_BYTES} that there may be: this is no agent's stream")]
    TooLong { bytes: usize },
    /// What is in a frame can't be decompressed.
    #[error("a frame is damaged")]
    Damaged(#[from] io::Error),
}

/// The namespaces that a query asks for, such as `namespaces=a,b`; `None` for all.
pub fn namespaces(query: &str) -> Option<Vec<String>> {
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    let values = pairs.filter(|(key, _)| key == NAMESPACES).map(|(_, value)| value.into_owned()).collect::<Vec<_>>();
    let names = values.iter().flat_map(|value| value.split(',')).map(str::trim).filter(|name| !name.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    (!names.is_empty()).then_some(names)
}

/// A query that asks for namespaces; empty for all.
pub fn query<'a>(namespaces: impl IntoIterator<Item = &'a str>) -> String {
    let names = namespaces.into_iter().collect::<Vec<_>>().join(",");
    if names.is_empty() { names } else { format!("{NAMESPACES}={names}") }
}

/// A frame of a request.
///
/// # Errors
/// It is too large, or there is no memory.
pub fn frame(request: &[u8]) -> io::Result<Bytes> {
    let packed = zstd::bulk::compress(request, LEVEL)?;
    if packed.len() > FRAME_BYTES || request.len() > REQUEST_BYTES {
        return Err(io::Error::other("a request that is too large for a frame"));
    }
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + packed.len());
    frame.extend_from_slice(&(packed.len() as u32).to_be_bytes());
    frame.extend_from_slice(&packed);
    Ok(frame.freeze())
}

/// A frame that says that there is nothing to tell.
pub const fn nothing() -> Bytes {
    Bytes::from_static(&[0; HEAD_BYTES])
}

/// The request in a frame, decompressed.
///
/// # Errors
/// It is damaged, or larger than a request may be.
pub fn request(packed: &[u8]) -> Result<Vec<u8>, BrokenStream> {
    Ok(zstd::bulk::decompress(packed, REQUEST_BYTES)?)
}

/// Frames of a stream, whatever the pieces are that it comes in.
#[derive(Debug, Default)]
pub struct Frames(BytesMut);

impl Frames {
    /// A piece has come.
    pub fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// The next frame that is whole, compressed as it is; empty if there is nothing to tell.
    ///
    /// # Errors
    /// This is no agent's stream.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, BrokenStream> {
        let Some(head) = self.0.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let bytes = u32::from_be_bytes(*head) as usize;
        if bytes > FRAME_BYTES {
            return Err(BrokenStream::TooLong { bytes });
        }
        if self.0.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        self.0.advance(HEAD_BYTES);
        Ok(Some(self.0.split_to(bytes).freeze()))
    }
}

const NAMESPACES: &str = "namespaces";
const HEAD_BYTES: usize = 4;
/// Most bytes of a frame, and of the request in it: twice what agents make requests of.
const FRAME_BYTES: usize = 8 << 20;
const REQUEST_BYTES: usize = 8 << 20;
/// About 1 µs per row, and 50 bytes.
const LEVEL: i32 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_made_whatever_the_pieces(
            requests in proptest::collection::vec(proptest::collection::vec(0u8..4, 0..300), 0..8),
            size in 1usize..64,
        ) {
            let mut stream = Vec::new();
            for request in &requests {
                stream.extend_from_slice(&frame(request).expect("it is small"));
                stream.extend_from_slice(&nothing());
            }
            let (mut frames, mut read) = (Frames::default(), Vec::new());
            for piece in stream.chunks(size) {
                frames.push(piece);
                while let Some(packed) = frames.next_frame().expect("it is a stream") {
                    if !packed.is_empty() {
                        read.push(request(&packed).expect("it is whole"));
                    }
                }
            }
            prop_assert_eq!(read, requests);
        }

        #[test]
        fn what_is_no_stream_is_refused_and_takes_no_memory(garbage: Vec<u8>) {
            let mut frames = Frames::default();
            frames.push(&garbage);
            while let Ok(Some(packed)) = frames.next_frame() {
                if !packed.is_empty() {
                    prop_assert!(request(&packed).map_or(true, |request| request.len() <= REQUEST_BYTES));
                }
            }
        }
    }

    #[test]
    fn a_query_names_namespaces() {
        assert_eq!(namespaces(""), None);
        assert_eq!(namespaces("namespaces="), None);
        assert_eq!(
            namespaces("namespaces=a,%20b,&other=c&namespaces=d"),
            Some(vec!["a".into(), "b".into(), "d".into()])
        );
        assert_eq!(query(["a", "b"]), "namespaces=a,b");
        assert_eq!(query([]), "");
    }

    #[test]
    fn a_bomb_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compressed");
        assert!(matches!(request(&bomb), Err(BrokenStream::Damaged(_))));
        let mut frames = Frames::default();
        frames.push(&[0xff; 8]);
        assert!(matches!(frames.next_frame(), Err(BrokenStream::TooLong { .. })));
    }
}
