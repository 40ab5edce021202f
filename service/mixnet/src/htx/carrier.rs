//! Where in a request a ticket stands (HTX reference, section 1.2).

use rand::{CryptoRng, RngExt, seq::IndexedRandom};
use thiserror::Error;

use super::ticket::{LEAST_PADDING, MOST_PADDING};

/// How a front wants to be shown tickets: published in its descriptor.
///
/// The names are the front's own; a name that all fronts share would give them away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CarrierPolicy {
    cookie: String,
    query: String,
    field: String,
    weights: [u8; 3],
    padding: (u8, u8),
}

/// A place in a request, with what is to stand there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Carrier {
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A parameter of the query.
    Query {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A field of a form (`application/x-www-form-urlencoded`) that is posted.
    Field {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

/// The parts of a request in which a ticket can stand.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Presented<'a> {
    /// The `Cookie` header; several are joined by `"; "`.
    pub cookie: Option<&'a str>,
    /// The query, without its question mark.
    pub query: Option<&'a str>,
    /// The body of a form.
    pub form: Option<&'a str>,
}

/// What a request holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found<'a> {
    /// Nothing that could be a ticket.
    Nothing,
    /// What should be a ticket.
    One(&'a str),
    /// More than one: exactly one carrier is used, so this is none of ours.
    Several,
}

impl<'a> Found<'a> {
    /// What [`Gate::check`](super::Gate::check) is to look at; several are never a ticket.
    pub fn ticket(self) -> Option<&'a str> {
        match self {
            Self::Nothing => None,
            Self::One(text) => Some(text),
            Self::Several => Some(""),
        }
    }
}

impl CarrierPolicy {
    /// The longest name.
    pub const MAX_NAME: usize = 32;

    /// The policy of these names, weights (cookie, query, form) and lengths of padding.
    ///
    /// # Errors
    ///
    /// A name is none, no carrier has a weight, or the padding is out of range.
    pub fn new(names: [&str; 3], weights: [u8; 3], padding: (u8, u8)) -> Result<Self, PolicyError> {
        for name in names {
            let fits = (1..=Self::MAX_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
            if !fits {
                return Err(PolicyError::Name);
            }
        }
        if weights == [0; 3] {
            return Err(PolicyError::NoCarrier);
        }
        let (least, most) = (usize::from(padding.0), usize::from(padding.1));
        if least > most || least < LEAST_PADDING || most > MOST_PADDING {
            return Err(PolicyError::Padding { least: padding.0, most: padding.1 });
        }
        let [cookie, query, field] = names.map(str::to_owned);
        Ok(Self { cookie, query, field, weights, padding })
    }

    /// A policy for a new front: names that many sites use, cookies preferred.
    pub fn draw(rng: &mut impl CryptoRng) -> Self {
        let mut name = |from: &[&str]| {
            let stem = from.choose(rng).copied().unwrap_or("id");
            let suffix: u16 = rng.random();
            format!("{stem}{}", suffix % 100)
        };
        let cookie = format!("__Host-{}", name(&["sid", "session", "uid", "pref", "auth", "u"]));
        let (query, field) =
            (name(&["v", "t", "ref", "rev", "s"]), name(&["token", "csrf", "state", "form"]));
        Self::new([&cookie, &query, &field], [200, 20, 35], (24, 64))
            .expect("the names are short and plain")
    }

    /// The names: cookie, query parameter, form field.
    pub fn names(&self) -> [&str; 3] {
        [&self.cookie, &self.query, &self.field]
    }

    /// How often each is used, in proportion.
    pub fn weights(&self) -> [u8; 3] {
        self.weights
    }

    /// The shortest and the longest padding, in bytes.
    pub fn padding(&self) -> (u8, u8) {
        self.padding
    }

    /// Puts a ticket into one carrier, drawn by the weights.
    pub fn place(&self, rng: &mut impl CryptoRng, value: String) -> Carrier {
        let [cookie, query, field] = self.weights.map(u16::from);
        let drawn = rng.random_range(0..cookie + query + field);
        if drawn < cookie {
            Carrier::Cookie { name: self.cookie.clone(), value }
        } else if drawn < cookie + query {
            Carrier::Query { name: self.query.clone(), value }
        } else {
            Carrier::Field { name: self.field.clone(), value }
        }
    }

    /// Looks for tickets in a request, in all three places.
    pub fn find<'a>(&self, request: Presented<'a>) -> Found<'a> {
        let cookies = pairs(request.cookie, ';', &self.cookie);
        let queries = pairs(request.query, '&', &self.query);
        let fields = pairs(request.form, '&', &self.field);
        let mut all = cookies.chain(queries).chain(fields);
        match (all.next(), all.next()) {
            (None, _) => Found::Nothing,
            (Some(value), None) => Found::One(value),
            (Some(_), Some(_)) => Found::Several,
        }
    }
}

/// Why a policy is none.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PolicyError {
    /// Names are 1 to 32 letters, digits, `_` and `-`.
    #[error("a carrier's name is not 1 to 32 of A-Z a-z 0-9 _ -")]
    Name,
    /// At least one carrier is used.
    #[error("no carrier has a weight")]
    NoCarrier,
    /// The padding is within 24 to 64 bytes.
    #[error(
        "padding of {least} to {most} bytes: expected within {LEAST_PADDING} to {MOST_PADDING}"
    )]
    Padding {
        /// The shortest.
        least: u8,
        /// The longest.
        most: u8,
    },
}

fn pairs<'a>(text: Option<&'a str>, separator: char, name: &str) -> impl Iterator<Item = &'a str> {
    text.unwrap_or_default()
        .split(separator)
        .filter_map(|pair| pair.trim_matches(' ').split_once('='))
        .filter(move |(found, _)| *found == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn finds_a_ticket_in_each_place_and_refuses_two() {
        let policy = CarrierPolicy::new(["__Host-sid", "v", "token"], [1, 1, 1], (24, 64)).unwrap();
        let cookie = Some("a=b; __Host-sid=one; c");
        let (query, form) = (Some("x=1&v=two"), Some("token=three"));
        let find = |presented| policy.find(presented);
        assert_eq!(find(Presented::default()), Found::Nothing);
        let in_cookie = Presented { cookie, ..Presented::default() };
        assert_eq!(find(in_cookie), Found::One("one"));
        assert_eq!(find(Presented { query, ..Presented::default() }), Found::One("two"));
        assert_eq!(find(Presented { form, ..Presented::default() }), Found::One("three"));
        assert_eq!(find(Presented { form, ..in_cookie }), Found::Several);
        let twice = Some("v=1&v=2");
        assert_eq!(find(Presented { query: twice, ..Presented::default() }), Found::Several);
        assert_eq!(Found::Several.ticket(), Some(""));
    }

    #[test]
    fn places_tickets_by_the_weights() {
        let mut rng = StdRng::seed_from_u64(7);
        let policy = CarrierPolicy::draw(&mut rng);
        let mut counts = [0; 3];
        for _ in 0..2550 {
            counts[match policy.place(&mut rng, "ticket".into()) {
                Carrier::Cookie { .. } => 0,
                Carrier::Query { .. } => 1,
                Carrier::Field { .. } => 2,
            }] += 1;
        }
        assert!((1900..2100).contains(&counts[0]), "{counts:?}");
        assert!((140..260).contains(&counts[1]), "{counts:?}");
        assert!((270..430).contains(&counts[2]), "{counts:?}");
    }

    #[test]
    fn two_fronts_rarely_use_the_same_names() {
        let mut rng = StdRng::seed_from_u64(1);
        let names: std::collections::BTreeSet<_> =
            (0..100).map(|_| CarrierPolicy::draw(&mut rng).names()[0].to_owned()).collect();
        assert!(names.len() > 80, "{}", names.len());
    }

    #[test]
    fn a_policy_says_what_is_wrong_with_it() {
        let names = ["__Host-sid", "v", "token"];
        for (names, weights, padding, error) in [
            (["", "v", "t"], [1, 1, 1], (24, 64), PolicyError::Name),
            (["a=b", "v", "t"], [1, 1, 1], (24, 64), PolicyError::Name),
            (names, [0, 0, 0], (24, 64), PolicyError::NoCarrier),
            (names, [1, 0, 0], (23, 64), PolicyError::Padding { least: 23, most: 64 }),
            (names, [1, 0, 0], (24, 65), PolicyError::Padding { least: 24, most: 65 }),
            (names, [1, 0, 0], (50, 40), PolicyError::Padding { least: 50, most: 40 }),
        ] {
            assert_eq!(CarrierPolicy::new(names, weights, padding), Err(error));
        }
    }
}
