//! Finds an app in the database for a command. The server's own look-ups are in `lookup/`; this is a single query, with
//! an error that says how to fix it.

use super::CommandError;
use crate::app::App;
use crate::config::SqlConfig;

/// The app of this id, or else one that is enabled if there is one.
///
/// # Errors
/// The fault and its remedy, in a sentence without the URL.
/// Of several apps without an id a row that cannot be read comes last, so that `doctor` looks at
/// one that works and the faulty row is still found when it is the only one.
#[cfg(feature = "sql")]
pub(super) async fn app(sql: &SqlConfig, id: Option<&str>) -> Result<App, CommandError> {
    use crate::lookup::sql::Database;

    let wrong = |problem: String| CommandError(format!("sql.url: {}", with_hint(&problem)));
    let mut database = Database::new(&sql.url, &sql.table).map_err(wrong)?;
    let Some(id) = id else {
        let rows = database.first_rows().await.map_err(wrong)?;
        let apps = rows.iter().map(|row| sql.rows.read_app(row));
        let app = apps.min_by_key(|app| app.as_ref().map_or(2, |(app, _)| u8::from(!app.enabled)));
        let none =
            || CommandError(format!("there is no app in the table {}: insert one", sql.table));
        return Ok(app.ok_or_else(none)??.0);
    };
    let row = database.row(id).await.map_err(wrong)?;
    let none = || {
        CommandError(format!("there is no app {id} in the table {}: is the id right?", sql.table))
    };
    Ok(sql.rows.read_app(&row.ok_or_else(none)?)?.0)
}

/// The settings refuse what this build cannot do.
#[cfg(not(feature = "sql"))]
pub(super) async fn app(_sql: &SqlConfig, _id: Option<&str>) -> Result<App, CommandError> {
    Err(CommandError("this program was built without sql".to_owned()))
}

/// The error of a database with what to do about it.
/// Matched by the words of MySQL (`1146`, `Access denied`), of PostgreSQL (`relation "`) and of the
/// TLS library, since the drivers' errors have no kinds in common.
#[cfg(feature = "sql")]
fn with_hint(problem: &str) -> String {
    let any = |words: &[&str]| words.iter().any(|word| problem.contains(word));
    let advice = if any(&["refused"]) {
        "start the database, or correct the address"
    } else if any(&["lookup address"]) {
        "the name is not known here; correct it, or the DNS"
    } else if any(&["Access denied", "authentication failed"]) {
        "correct the user and the password, and let the user read the table"
    } else if any(&["1049", "database \""]) {
        "correct the name of the database, at the end of the URL"
    } else if any(&["1146", "relation \""]) {
        "correct sql.table, or the database at the end of the URL"
    } else if any(&["1054", "column"]) {
        "the table must have the columns id, key and secret"
    } else if any(&["permission denied", "denied to user"]) {
        "let the user read the table"
    } else if any(&["UnknownIssuer"]) {
        "its certificate's issuer is not trusted here; name a file with its issuer in the URL, ?ssl-ca=FILE"
    } else if any(&["not valid for name"]) {
        "its certificate is for another name; use that name in the URL"
    } else if any(&["no answer"]) {
        "a firewall drops what is sent there, or the database is stuck"
    } else {
        return problem.to_owned();
    };
    format!("{problem}: {advice}")
}
