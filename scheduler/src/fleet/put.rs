//! What a PUT of a unit means: which of the core's commands.

use std::sync::Arc;

use hyper::StatusCode;
use muster_core::command::Verb;
use muster_core::state::DesiredState;
use muster_core::unit::UnitName;

use super::options;
use super::wire::{Object, Refused, SetUnit, UnitOption};

/// What is asked for.
#[derive(Debug)]
pub(super) struct Put {
    options: Vec<UnitOption>,
    desired: Option<DesiredState>,
}

/// What is known of the unit.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) content: Arc<str>,
    pub(super) desired: DesiredState,
}

/// What the leader is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) verb: Verb,
    pub(super) content: Option<Arc<str>>,
    pub(super) replace: bool,
    /// What the client is answered once it is done.
    pub(super) status: StatusCode,
}

impl Put {
    /// Reads what a client has sent for this unit.
    pub(super) fn new(name: &UnitName, body: SetUnit) -> Result<Self, Refused> {
        let own = body.name.unwrap_or_default();
        if !own.is_empty() && own != name.as_str() {
            let text = format!("name in URL \"{name}\" differs from unit name in request body {own:?}");
            return Err(Refused::bad(text));
        }
        let desired = match body.desired_state.as_deref().unwrap_or_default() {
            "" => None,
            "inactive" => Some(DesiredState::Inactive),
            "loaded" => Some(DesiredState::Loaded),
            "launched" => Some(DesiredState::Launched),
            other => {
                return Err(Refused::bad(format!(
                    "invalid desiredState {other:?}: expect inactive, loaded, or launched"
                )));
            }
        };
        let options: Vec<UnitOption> =
            body.options.unwrap_or_default().into_iter().map(|Object(option)| option).collect();
        options::check(&options)?;
        Ok(Self { options, desired })
    }

    /// What is to be done, where this is known of the unit.
    pub(super) fn decide(&self, name: &UnitName, known: Option<&Known>) -> Result<Step, Refused> {
        let content: Arc<str> = options::text(&self.options).into();
        // The file as it was submitted is kept where it says the same in another form.
        let is_other = |known: &Known| {
            known.content != content && options::text(&options::read(&known.content)) != *content
        };
        let brings = !self.options.is_empty() && known.is_none_or(is_other);
        let desired = match (known, self.desired) {
            (None, _) if !brings => {
                let text = "unit does not exist and options field empty";
                return Err(Refused::new(StatusCode::CONFLICT, text));
            }
            (Some(_), None) if !brings => {
                let text = "must provide DesiredState to update existing unit";
                return Err(Refused::new(StatusCode::CONFLICT, text));
            }
            (_, desired) => desired.unwrap_or(DesiredState::Inactive),
        };
        if name.is_template() && desired != DesiredState::Inactive {
            return Err(Refused::bad(format!("cannot activate template {:?}", name.as_str())));
        }
        let is = known.map_or(DesiredState::Inactive, |known| known.desired);
        let verb = match desired {
            DesiredState::Inactive if brings && is == DesiredState::Inactive => Verb::Submit,
            DesiredState::Inactive => Verb::Unload,
            DesiredState::Loaded if is == DesiredState::Launched => Verb::Stop,
            DesiredState::Loaded => Verb::Load,
            DesiredState::Launched => Verb::Start,
        };
        Ok(Step {
            verb,
            content: brings.then_some(content),
            replace: brings && known.is_some(),
            status: if brings { StatusCode::CREATED } else { StatusCode::NO_CONTENT },
        })
    }
}

#[cfg(test)]
mod tests {
    use DesiredState::{Inactive, Launched, Loaded};

    use super::*;

    const FILE: &str = "[Service]\nExecStart=/bin/a\n";

    fn put(file: &str, desired: &str) -> Put {
        let body = SetUnit {
            name: None,
            options: Some(options::read(file).into_iter().map(Object).collect()),
            desired_state: Some(desired.to_owned()),
        };
        Put::new(&name("u.service"), body).expect("it makes sense")
    }

    fn name(text: &str) -> UnitName {
        text.parse().expect("a name")
    }

    fn known(content: &str, desired: DesiredState) -> Known {
        Known { content: content.into(), desired }
    }

    fn step(verb: Verb, content: Option<&str>, replace: bool, status: StatusCode) -> Step {
        Step { verb, content: content.map(Into::into), replace, status }
    }

    #[test]
    fn a_unit_that_is_not_known_is_created() {
        for (desired, verb) in [
            ("", Verb::Submit),
            ("inactive", Verb::Submit),
            ("loaded", Verb::Load),
            ("launched", Verb::Start),
        ] {
            let decided = put(FILE, desired).decide(&name("u.service"), None);
            assert_eq!(decided, Ok(step(verb, Some(FILE), false, StatusCode::CREATED)), "{desired}");
        }
        let nothing = put("", "launched").decide(&name("u.service"), None).expect_err("refused");
        assert_eq!(nothing.status, StatusCode::CONFLICT);
    }

    #[test]
    fn what_is_known_takes_another_desired_state() {
        let done = StatusCode::NO_CONTENT;
        for (is, desired, verb) in [
            (Inactive, "inactive", Verb::Unload),
            (Inactive, "loaded", Verb::Load),
            (Inactive, "launched", Verb::Start),
            (Loaded, "inactive", Verb::Unload),
            (Loaded, "loaded", Verb::Load),
            (Loaded, "launched", Verb::Start),
            (Launched, "inactive", Verb::Unload),
            (Launched, "loaded", Verb::Stop),
            (Launched, "launched", Verb::Start),
        ] {
            // The same options, whatever the form of the file, are none.
            for file in ["", FILE] {
                let known = known("# as it was submitted\n[Service]\nExecStart = /bin/a", is);
                let decided = put(file, desired).decide(&name("u.service"), Some(&known));
                assert_eq!(decided, Ok(step(verb, None, false, done)), "{is} {desired}");
            }
        }
        for file in ["", FILE] {
            let known = known(FILE, Launched);
            let refused = put(file, "").decide(&name("u.service"), Some(&known)).expect_err("refused");
            assert_eq!(
                refused,
                Refused::new(StatusCode::CONFLICT, "must provide DesiredState to update existing unit")
            );
        }
    }

    #[test]
    fn other_options_without_a_desired_state_make_it_inactive() {
        for (is, desired, verb) in [
            (Inactive, "", Verb::Submit),
            (Loaded, "", Verb::Unload),
            (Launched, "", Verb::Unload),
            (Launched, "inactive", Verb::Unload),
            (Inactive, "loaded", Verb::Load),
            (Loaded, "loaded", Verb::Load),
            (Launched, "loaded", Verb::Stop),
            (Inactive, "launched", Verb::Start),
            (Launched, "launched", Verb::Start),
        ] {
            let known = known("[Service]\nExecStart=/bin/b\n", is);
            let decided = put(FILE, desired).decide(&name("u.service"), Some(&known));
            assert_eq!(decided, Ok(step(verb, Some(FILE), true, StatusCode::CREATED)), "{is} {desired:?}");
        }
    }

    #[test]
    fn templates_are_inactive() {
        let template = name("u@.service");
        let refused = Refused::bad("cannot activate template \"u@.service\"");
        for known in [None, Some(known(FILE, Inactive)), Some(known("[Service]\n", Inactive))] {
            assert_eq!(put(FILE, "launched").decide(&template, known.as_ref()), Err(refused.clone()));
        }
        let created = put(FILE, "").decide(&template, None);
        assert_eq!(created, Ok(step(Verb::Submit, Some(FILE), false, StatusCode::CREATED)));
        let unloaded = put("", "inactive").decide(&template, Some(&known(FILE, Inactive)));
        assert_eq!(unloaded, Ok(step(Verb::Unload, None, false, StatusCode::NO_CONTENT)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let body = |own: &str, desired: &str| SetUnit {
            name: Some(own.to_owned()),
            options: None,
            desired_state: Some(desired.to_owned()),
        };
        let read = |body| Put::new(&name("a.service"), body).map(drop);
        let refused = read(body("b.service", "")).expect_err("another name").message;
        assert_eq!(refused, "name in URL \"a.service\" differs from unit name in request body \"b.service\"");
        assert_eq!(read(body("", "bogus")).expect_err("no state").status, StatusCode::BAD_REQUEST);
        assert_eq!(read(body("a.service", "loaded")), Ok(()));
    }
}
