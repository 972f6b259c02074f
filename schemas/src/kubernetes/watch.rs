//! Watching one resource, for as long as somebody listens.

use std::time::Duration;

use futures::TryStreamExt;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event, ListSemantic, watcher},
    },
};
use tokio::{sync::mpsc, time::sleep};

use super::{Change, Object, Problem, Resource, object::Texts, reason, record};

/// How a watch begins.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Wait so long first, so that not all agents of a cluster ask at once.
    pub delay: Duration,
    /// Field selector, such as `spec.nodeName=node-a`.
    pub fields: Option<String>,
    /// Take the first list from the API server's memory: for lists that are short, or that many ask for.
    pub is_cached: bool,
}

/// Lists a resource and follows it, and says what it hears to `listener`, as a `message`; ends when that is gone. An API server that is
/// away is asked again, with growing pauses up to ten seconds; what it has forgotten by then (410 Gone) is listed anew.
pub async fn watch<M: Send>(
    client: Client,
    resource: Resource,
    start: Start,
    listener: mpsc::Sender<M>,
    message: impl Fn(Change) -> M + Send,
) {
    let api: Api<Object> = Api::all_with(client, &resource.api);
    let semantic = if start.is_cached { ListSemantic::Any } else { ListSemantic::MostRecent };
    let config = watcher::Config { field_selector: start.fields, ..watcher::Config::default() };
    let config = config.page_size(PAGE).list_semantic(semantic);
    sleep(start.delay).await;
    let mut events = std::pin::pin!(watcher(api, config).backoff(Patience::default()));
    let mut texts = Texts::default();
    loop {
        let change = match events.try_next().await {
            Ok(Some(event)) => change(event, &resource, &mut texts),
            Ok(None) => return,
            Err(error) => problem(&error).map(|problem| Change::Unreadable(resource.clone(), problem)),
        };
        let Some(change) = change else { continue };
        if listener.send(message(change)).await.is_err() {
            return;
        }
    }
}

/// The usual growing and jittered pauses, but short enough that a server that is back is soon heard.
#[derive(Default)]
struct Patience(DefaultBackoff);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST_PAUSE))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0.reset();
    }
}

fn change(event: Event<Object>, resource: &Resource, texts: &mut Texts) -> Option<Change> {
    match event {
        Event::Init => Some(Change::Listing(resource.clone())),
        Event::InitApply(object) | Event::Apply(object) => record(resource, object, texts).map(Change::There),
        Event::Delete(object) => record(resource, object, texts).map(Change::Gone),
        Event::InitDone => Some(Change::Listed(resource.clone())),
    }
}

/// What keeps a resource from being watched; `None` for what a watch recovers from by itself at once.
fn problem(error: &watcher::Error) -> Option<Problem> {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    let (code, why) = match error {
        InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause) => {
            let code = if let kube::Error::Api(status) = cause { status.code } else { 0 };
            (code, reason(cause))
        }
        WatchError(status) => (status.code, status.message.clone()),
        NoResourceVersion => (0, error.to_string()),
    };
    match code {
        410 => None,
        403 => Some(Problem::Forbidden),
        404 => Some(Problem::NotServed),
        _ => Some(Problem::Failed(why)),
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Objects per page of a list: a page of pods is some megabytes of JSON.
const PAGE: u32 = 250;
