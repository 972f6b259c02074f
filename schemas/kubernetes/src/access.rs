//! Who somebody is, and what they may do, as the API server tells: for those who serve what is of a namespace.

pub use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};

use super::reason;

/// Asks the API server.
#[derive(Clone)]
pub struct Access(Client);

/// Why it can't be told.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It does not say.
    #[error("the API server does not say who asks: {0}")]
    Unanswered(String),
    /// It may not be asked.
    #[error(
        "asking who may record is not allowed: add to the agent's ClusterRole {{ apiGroups: [\"{group}\"], \
         resources: [{resource}], verbs: [create] }}"
    )]
    Forbidden { group: &'static str, resource: &'static str },
}

impl Access {
    /// By a client whose user may create TokenReviews and SubjectAccessReviews.
    pub const fn new(client: Client) -> Self {
        Self(client)
    }

    /// Whose a token is, made for one of these audiences, or for the API server itself; `None` if it is nobody's.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn user(&self, token: &str, audience: &str) -> Result<Option<UserInfo>, AccessError> {
        for audiences in [Some(vec![audience.to_owned()]), None] {
            let spec = TokenReviewSpec { token: Some(token.into()), audiences };
            let review = TokenReview { spec, ..TokenReview::default() };
            let reviewed = Api::all(self.0.clone()).create(&PostParams::default(), &review).await;
            let reviewed: TokenReview =
                reviewed.map_err(|error| refused(&error, "authentication.k8s.io", "tokenreviews"))?;
            let status = reviewed.status.unwrap_or_default();
            if status.authenticated == Some(true) {
                return Ok(status.user);
            }
        }
        Ok(None)
    }

    /// Whether a user may get the pods of a namespace, or without one of all.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn may_get_pods(&self, user: &UserInfo, namespace: Option<&str>) -> Result<bool, AccessError> {
        let attributes = ResourceAttributes {
            verb: Some("get".into()),
            resource: Some("pods".into()),
            namespace: namespace.map(Into::into),
            ..ResourceAttributes::default()
        };
        let UserInfo { username, groups, uid, extra } = user.clone();
        let spec = SubjectAccessReviewSpec {
            user: username,
            groups,
            uid,
            extra,
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let reviewed = Api::all(self.0.clone()).create(&PostParams::default(), &review).await;
        let reviewed: SubjectAccessReview =
            reviewed.map_err(|error| refused(&error, "authorization.k8s.io", "subjectaccessreviews"))?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }
}

fn refused(error: &kube::Error, group: &'static str, resource: &'static str) -> AccessError {
    match error {
        kube::Error::Api(status) if status.code == 403 => AccessError::Forbidden { group, resource },
        error => AccessError::Unanswered(reason(error)),
    }
}
