//! Where a request goes: paths and methods.

use hyper::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::wire::Refused;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Units,
    /// One unit, by what the client takes for its name.
    Unit(String, UnitMethod),
    States,
    State(String),
    Machines,
    PatchMachines,
    Discovery,
    Metrics,
}

/// What is done with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitMethod {
    Get,
    Put,
    Delete,
}

/// fleet serves the same under both.
const PREFIXES: [&str; 2] = ["/fleet/v1", "/v1-alpha"];

/// Where this goes.
///
/// # Errors
/// 404 for what leads nowhere, and what fleet answers to other methods than those that it knows.
pub(super) fn route(method: &Method, path: &str) -> Result<Route, Refused> {
    if path == "/" || PREFIXES.contains(&path) {
        return Err(not_allowed(""));
    }
    if path == "/metrics" {
        return if method == Method::GET { Ok(Route::Metrics) } else { Err(not_allowed("")) };
    }
    let rest = PREFIXES.iter().find_map(|prefix| path.strip_prefix(prefix)?.strip_prefix('/'));
    let segments: Vec<&str> = rest.ok_or_else(Refused::nowhere)?.split('/').collect();
    let name = |text: &str| {
        let name = percent_decode_str(text).decode_utf8().map(String::from);
        name.ok().filter(|name| !name.is_empty()).ok_or_else(Refused::nowhere)
    };
    let only_get = |route| match *method {
        Method::GET => Ok(route),
        _ => Err(not_allowed("only GET supported against this resource")),
    };
    match segments[..] {
        ["units"] => only_get(Route::Units),
        ["units", unit] => {
            let unit = name(unit)?;
            let method = match *method {
                Method::GET => UnitMethod::Get,
                Method::PUT => UnitMethod::Put,
                Method::DELETE => UnitMethod::Delete,
                _ => return Err(not_allowed("only GET, PUT and DELETE supported against this resource")),
            };
            Ok(Route::Unit(unit, method))
        }
        ["state"] => only_get(Route::States),
        ["state", unit] => only_get(Route::State(name(unit)?)),
        ["machines"] => match *method {
            Method::GET => Ok(Route::Machines),
            Method::PATCH => Ok(Route::PatchMachines),
            _ => Err(not_allowed("only GET and PATCH supported against this resource")),
        },
        ["discovery"] if method == Method::GET => Ok(Route::Discovery),
        // fleet's own code for that.
        ["discovery"] => Err(Refused::bad("only HTTP GET supported against this resource")),
        _ => Err(Refused::nowhere()),
    }
}

fn not_allowed(message: &str) -> Refused {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// The parameters of a request.
#[derive(Debug)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn new(query: Option<&str>) -> Self {
        let text = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (text(name), text(value))
        };
        Self(query.unwrap_or_default().split('&').map(pair).collect())
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(own, _)| own == name).map(|(_, value)| value.clone()).collect()
    }

    /// The first one with this name, where it has a value.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(own, _)| own == name).map(|(_, value)| &**value);
        value.filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded() {
        for prefix in PREFIXES {
            let route = route(&Method::PUT, &format!("{prefix}/units/hello%401.service"));
            assert_eq!(route, Ok(Route::Unit("hello@1.service".to_owned(), UnitMethod::Put)));
        }
        assert_eq!(route(&Method::GET, "/fleet/v1/state/a%2Fb"), Ok(Route::State("a/b".to_owned())));
        assert_eq!(route(&Method::GET, "/fleet/v1/units/%ff"), Err(Refused::nowhere()));
    }

    #[test]
    fn parameters_are_decoded() {
        let parameters = Parameters::new(Some("alt=json&unitName=a%40b+c&x&machineID=&machineID=2"));
        assert_eq!((parameters.first("unitName"), parameters.first("machineID")), (Some("a@b c"), None));
        assert_eq!(parameters.all("machineID"), ["", "2"]);
        assert_eq!((parameters.all("x"), Parameters::new(None).first("x")), (vec![String::new()], None));
    }
}
