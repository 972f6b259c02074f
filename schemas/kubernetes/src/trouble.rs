//! What can't be watched at the moment.

use std::sync::Arc;

use super::{Change, Problem, Resource};
use schemas::table::TimestampMs;

/// What can't be watched, as it is heard of.
#[derive(Debug, Default)]
pub struct Troubles(Vec<Trouble>);

/// A resource that can't be watched.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// The resource.
    pub resource: Resource,
    /// Why.
    pub problem: Problem,
    last: TimestampMs,
}

/// What is new about troubles.
#[derive(Clone, Debug)]
pub enum News {
    /// A resource can't be watched, or for another reason than before.
    Began(Trouble),
    /// It can be watched again.
    Over(Trouble),
}

impl Troubles {
    /// Takes in what was heard.
    pub fn learn(&mut self, change: &Change, now: TimestampMs) -> Option<News> {
        match change {
            Change::Unreadable(resource, problem) => {
                if let Some(known) = self.0.iter_mut().find(|t| t.resource == *resource && t.problem == *problem) {
                    known.last = now;
                    return None;
                }
                let trouble = Trouble { resource: resource.clone(), problem: problem.clone(), last: now };
                self.0.retain(|other| other.resource != *resource);
                self.0.push(trouble.clone());
                Some(News::Began(trouble))
            }
            Change::Listed(resource) => self.end(|trouble| trouble.resource == *resource),
            Change::There(record) | Change::Gone(record) => self.end(|trouble| trouble.resource.is_of(record)),
            Change::Listing(_) => None,
        }
    }

    /// A watch that goes on says nothing until something changes: a failure that is not heard of again is over.
    pub fn expire(&mut self, now: TimestampMs) -> Option<News> {
        self.end(|trouble| matches!(trouble.problem, Problem::Failed(_)) && now.0 - trouble.last.0 > FAILURE_MS)
    }

    /// How many resources the server fails to tell of: one that is away fails all at once.
    pub fn failures(&self) -> usize {
        self.iter().filter(|trouble| matches!(trouble.problem, Problem::Failed(_))).count()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Trouble> {
        self.0.iter()
    }

    /// Names of the resources that the API server has and can't be watched, for the health of a recording.
    pub fn names(&self) -> Vec<Arc<str>> {
        let served = self.iter().filter(|trouble| trouble.problem != Problem::NotServed);
        served.map(|trouble| trouble.resource.to_string().into()).collect()
    }

    fn end(&mut self, is_over: impl Fn(&Trouble) -> bool) -> Option<News> {
        let at = self.0.iter().position(is_over)?;
        Some(News::Over(self.0.swap_remove(at)))
    }
}

/// Twice the longest pause between two attempts, with what connecting may take.
const FAILURE_MS: i64 = 120_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_once_and_ends_when_something_is_heard_or_nothing_more() {
        let mut troubles = Troubles::default();
        let (pods, failed) = (Resource::pods(), Problem::Failed("away".into()));
        let unreadable = |problem: &Problem| Change::Unreadable(pods.clone(), problem.clone());
        assert!(matches!(troubles.learn(&unreadable(&failed), TimestampMs(0)), Some(News::Began(_))));
        assert!(troubles.learn(&unreadable(&failed), TimestampMs(60_000)).is_none());
        assert!(troubles.expire(TimestampMs(150_000)).is_none(), "it was heard of again");
        assert!(matches!(troubles.expire(TimestampMs(181_000)), Some(News::Over(_))));
        assert!(matches!(troubles.learn(&unreadable(&Problem::Forbidden), TimestampMs(0)), Some(News::Began(_))));
        assert!(troubles.expire(TimestampMs(i64::MAX)).is_none(), "only who allows it can end that");
        assert_eq!(troubles.names(), ["pods".into()]);
        assert!(matches!(troubles.learn(&Change::Listed(pods.clone()), TimestampMs(0)), Some(News::Over(_))));
        assert!(troubles.learn(&Change::Listed(pods), TimestampMs(0)).is_none());
    }
}
