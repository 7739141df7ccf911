//! `POST /apps/{id}/users/{user}/terminate_connections`: a backend throws a user out. Whose connections
//! those are, and on which nodes, is the node's business.

use serde_json::{Value, json};

use super::api::Call;
use super::error::Error;
use crate::protocol::member::UserId;

/// Closes every connection of the user. That there is none is no error (case U16).
pub(super) fn terminate(call: &Call<'_>, user: &str) -> Result<Value, Error> {
    let user = UserId::parse(user)
        .ok_or_else(|| Error::mistyped("user_id", &format!("1 to {} characters", UserId::MAX)))?;
    call.node.terminate(&call.app.id, &call.directory, &user);
    Ok(json!({}))
}
