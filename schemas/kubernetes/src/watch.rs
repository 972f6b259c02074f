//! Watching one resource, for as long as somebody listens.

use std::time::Duration;

use futures::TryStreamExt;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, ListSemantic, watcher},
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
    /// Take lists from the API server's memory, which may be a moment behind: for lists that many ask for.
    pub is_cached: bool,
}

/// Lists a resource and follows it, and says what it hears to `listener`, as a `message`; ends when that is gone. An API server that is
/// away is asked again, with growing pauses up to ten seconds, one that refuses up to a minute; what it has forgotten by
/// then (410 Gone) is listed anew.
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
    let mut events = std::pin::pin!(watcher(api, config));
    let mut texts = Texts::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let change = match events.try_next().await {
            Ok(Some(event)) => {
                // That a list begins is said before the server is asked.
                if !matches!(event, Event::Init) {
                    pause = FIRST_PAUSE;
                }
                change(event, &resource, &mut texts)
            }
            Ok(None) => return,
            Err(error) => {
                let problem = problem(&error);
                let is_refused = matches!(problem, Some(Problem::Forbidden | Problem::NotServed));
                let unreadable = problem.map(|problem| Change::Unreadable(resource.clone(), problem));
                if let Some(unreadable) = unreadable
                    && listener.send(message(unreadable)).await.is_err()
                {
                    return;
                }
                sleep(spread(pause)).await;
                // One that has just started may refuse what it allows in a moment.
                pause = (pause * 2).min(if is_refused { LONGEST_PAUSE_REFUSED } else { LONGEST_PAUSE });
                None
            }
        };
        let Some(change) = change else { continue };
        if listener.send(message(change)).await.is_err() {
            return;
        }
    }
}

/// Half to one and a half of a pause, so that not all who wait ask at once.
fn spread(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
}

fn change(event: Event<Object>, resource: &Resource, texts: &mut Texts) -> Option<Change> {
    match event {
        Event::Init => Some(Change::Listing(resource.clone())),
        Event::InitApply(object) if !object.is_of_use(resource) => None,
        // What is of no use any more is as good as gone.
        Event::Apply(object) if !object.is_of_use(resource) => Some(Change::Gone(record(resource, object, texts))),
        Event::InitApply(object) | Event::Apply(object) => Some(Change::There(record(resource, object, texts))),
        Event::Delete(object) => Some(Change::Gone(record(resource, object, texts))),
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

const FIRST_PAUSE: Duration = Duration::from_millis(800);
const LONGEST_PAUSE_REFUSED: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Objects per page of a list: a page of pods is some megabytes of JSON.
const PAGE: u32 = 250;
