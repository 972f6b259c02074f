//! An object store with a capture below a prefix.

use std::{fmt, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart, parse_url_opts, path::Path};
use url::Url;

use super::{Failure, Receipt};

/// An object store, and where in it a capture is.
pub struct Store {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
}

/// An object of a capture.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its name below the prefix: `flows/date=…/hour=…/….parquet`.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it is told by from another of the same name, where the store says so.
    pub version: Option<String>,
    /// When it was written.
    pub modified: SystemTime,
}

/// Why a store can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is none of a store that this build knows.
    #[error("{url} is not an object store that this build can use: {reason}")]
    Url { url: String, reason: String },
    /// The store refused, or did not answer.
    #[error("cannot read {url}: {reason}")]
    Read { url: String, reason: String },
    /// The store refused to remove an object, or did not answer.
    #[error("cannot remove {url}: {reason}")]
    Remove { url: String, reason: String },
}

/// Whether a path or address is that of an object store.
pub fn is_url(location: &std::path::Path) -> bool {
    location.to_str().is_some_and(|text| text.contains("://"))
}

impl Store {
    /// Opens a store by its address, such as `s3://bucket/prefix`, with credentials and settings from the environment:
    /// `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT` and so on.
    ///
    /// # Errors
    /// The address is none of a store that this build knows.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let wrong = |reason: String| StoreError::Url { url: url.into(), reason };
        let parsed = Url::parse(url).map_err(|error| wrong(error.to_string()))?;
        let settings = std::env::vars().map(|(key, value)| (key.to_ascii_lowercase(), value));
        let (store, prefix) = parse_url_opts(&parsed, settings).map_err(|error| match error {
            error if error.to_string().contains("feature for") => {
                wrong("built in are s3:// and file://; gs://, az:// and https:// are features of the build".into())
            }
            error => wrong(brief(&error)),
        })?;
        Ok(Self { store: store.into(), prefix, url: url.trim_end_matches('/').into() })
    }

    /// Its address, with a name below it.
    pub fn url_of(&self, name: &str) -> String {
        if name.is_empty() { self.url.clone() } else { format!("{}/{name}", self.url) }
    }

    /// Everything below the prefix, in order of name.
    ///
    /// # Errors
    /// The store refuses, or does not answer.
    pub async fn list(&self) -> Result<Vec<Object>, StoreError> {
        let object = |meta: object_store::ObjectMeta| {
            let rest = meta.location.prefix_match(&self.prefix);
            let name = rest.map(|parts| parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
            // The prefix itself is an object where it names one file.
            let (name, version) = (name.unwrap_or_default(), meta.e_tag.or(meta.version));
            Object { name, size_bytes: meta.size, version, modified: meta.last_modified.into() }
        };
        let listed: Result<Vec<_>, _> = self.store.list(Some(&self.prefix)).map_ok(object).try_collect().await;
        let mut objects = listed.map_err(|source| self.read_error("", source))?;
        if objects.is_empty() && !self.prefix.as_ref().is_empty() {
            // Listing takes the prefix for a folder.
            if let Ok(meta) = self.store.head(&self.prefix).await {
                objects.push(object(meta));
            }
        }
        objects.sort();
        Ok(objects)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// The store refuses, or does not answer.
    pub async fn get(&self, name: &str) -> Result<Bytes, StoreError> {
        let read = async { self.store.get(&self.location(name)).await?.bytes().await };
        read.await.map_err(|source| self.read_error(name, source))
    }

    /// Writes an object; a large one in parts, so that it is there only as a whole.
    ///
    /// # Errors
    /// It is not there, and can be tried again.
    pub async fn put(&self, name: &str, body: Bytes) -> Result<Receipt, Failure> {
        let location = self.location(name);
        let put = async {
            if body.len() <= PART_BYTES {
                return self.store.put(&location, PutPayload::from_bytes(body)).await.map(drop);
            }
            let upload = self.store.put_multipart(&location).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            upload.put(body);
            upload.finish().await.map(drop)
        };
        let retry = |error: object_store::Error| Failure::Retry {
            after: None,
            reason: format!("{}: {}", self.url_of(name), brief(&error)),
        };
        put.await.map(|()| Receipt::default()).map_err(retry)
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// The store refuses, or does not answer.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self.store.delete(&self.location(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::Remove { url: self.url_of(name), reason: brief(&error) }),
        }
    }

    fn location(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), |path, part| path.join(part))
    }

    fn read_error(&self, name: &str, error: object_store::Error) -> StoreError {
        StoreError::Read { url: self.url_of(name), reason: brief(&error) }
    }
}

/// What a store says is wrong, without the requests and answers that its errors hold.
fn brief(error: &object_store::Error) -> String {
    let text = error.to_string();
    let said = text.split_once("<Message>").and_then(|(_, rest)| Some(rest.split_once("</Message>")?.0));
    let first = said.or_else(|| text.lines().next()).unwrap_or_default();
    let hint = match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            " (are the credentials in the environment, such as AWS_ACCESS_KEY_ID, and may they?)"
        }
        _ => "",
    };
    format!("{first}{hint}")
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.url).finish()
    }
}

/// Size of a part, and of what is sent at once: parts of S3 have at least 5 MiB.
const PART_BYTES: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_put_is_listed_and_read_in_parts_or_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("file://{}/capture", directory.path().display());
        let store = Store::open(&url).expect("a store");
        let large: Bytes = (0..PART_BYTES * 2 + 17).map(|at| at as u8).collect();
        for (name, body) in [("flows/b.parquet", large.clone()), ("flows/a.parquet", Bytes::from_static(b"small"))] {
            assert_eq!(store.put(name, body).await, Ok(Receipt::default()));
        }
        let listed = store.list().await.expect("it can be listed");
        let names: Vec<_> = listed.iter().map(|object| (&*object.name, object.size_bytes)).collect();
        assert_eq!(names, [("flows/a.parquet", 5), ("flows/b.parquet", large.len() as u64)]);
        assert_eq!(store.get("flows/b.parquet").await.expect("it is there"), large);
        let missing = store.get("flows/c.parquet").await.expect_err("it is not there").to_string();
        assert!(missing.contains(&format!("{url}/flows/c.parquet")), "{missing}");
        let unknown = Store::open("ftp://somewhere/else").expect_err("no such store").to_string();
        assert!(unknown.starts_with("ftp://somewhere/else is not an object store"), "{unknown}");
    }
}
