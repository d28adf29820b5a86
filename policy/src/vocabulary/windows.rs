//! Change windows: hours on days of the week in a time zone, and when they are next open.
//!
//! The zone database is compiled in, and the time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::{Date, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use serde::Deserialize;

/// How many days ahead to search for an opening. A window opens at least once a week.
const DAYS_AHEAD: i64 = 8;
/// How often the search may move from one window's opening to the next one's before it gives up.
const MAX_STEPS: usize = 64;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WindowSpec {
    zone: String,
    days: Vec<String>,
    opens: String,
    /// At or before `opens` means on the next day.
    closes: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Window {
    zone: TimeZone,
    days: Vec<Weekday>,
    opens: Time,
    closes: Time,
}

pub(crate) type Windows = BTreeMap<String, Window>;

impl WindowSpec {
    pub(crate) fn read(&self) -> Result<Window, Vec<String>> {
        let mut errors = Vec::new();
        let mut days = Vec::with_capacity(self.days.len());
        for day in &self.days {
            match weekday(day) {
                Some(day) => days.push(day),
                None => errors.push(format!("`{day}` is no day: use mon, tue, wed, thu, fri, sat, sun")),
            }
        }
        if self.days.is_empty() {
            errors.push("a window needs at least one day".to_owned());
        }
        let time = |text: &String| {
            Time::strptime("%H:%M", text).map_err(|_| format!("`{text}` is no time of day: use `HH:MM`"))
        };
        let zone = TimeZone::get(&self.zone)
            .map_err(|_| format!("`{}` is no time zone: use an IANA name such as `Europe/Berlin`", self.zone));
        match (zone, time(&self.opens), time(&self.closes)) {
            (Ok(zone), Ok(opens), Ok(closes)) if errors.is_empty() => Ok(Window { zone, days, opens, closes }),
            (zone, opens, closes) => {
                errors.extend([zone.err(), opens.err(), closes.err()].into_iter().flatten());
                Err(errors)
            }
        }
    }
}

impl Window {
    /// Whether it is never open when the other one is closed.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        let same_night = (self.closes > self.opens) == (other.closes > other.opens);
        self.zone == other.zone
            && self.days.iter().all(|day| other.days.contains(day))
            && same_night
            && self.opens >= other.opens
            && self.closes <= other.closes
    }

    /// In one form, whatever form the pack writes it in.
    pub(crate) fn written(&self) -> String {
        let Self { zone, days, opens, closes } = self;
        let mut days: Vec<i8> = days.iter().map(|day| day.to_monday_one_offset()).collect();
        days.sort_unstable();
        days.dedup();
        let zone = zone.iana_name().map_or_else(|| format!("{zone:?}"), str::to_owned);
        format!("{zone} {days:?} {opens} {closes}")
    }

    /// The next moment at which the window is open: `now` itself while it is.
    fn open_from(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        // An opening that began yesterday may last past midnight.
        (-1..=DAYS_AHEAD).find_map(|offset| {
            let date = today.checked_add(offset.days()).ok()?;
            let (opens, closes) = self.opening_on(date)?;
            (now < closes).then(|| opens.max(now))
        })
    }

    fn opening_on(&self, date: Date) -> Option<(Timestamp, Timestamp)> {
        if !self.days.contains(&date.weekday()) {
            return None;
        }
        let last = if self.closes > self.opens { date } else { date.tomorrow().ok()? };
        let at =
            |date: Date, time: Time| date.to_datetime(time).to_zoned(self.zone.clone()).map(|z: Zoned| z.timestamp());
        let (opens, closes) = (at(date, self.opens).ok()?, at(last, self.closes).ok()?);
        (opens < closes).then_some((opens, closes))
    }
}

/// Whether every group has an open window now; if not, also when they are next all open (RFC 3339, UTC).
pub(crate) fn judge(
    groups: &BTreeSet<BTreeSet<String>>,
    windows: &Windows,
    evaluated_at: i64,
) -> (bool, Option<String>) {
    if groups.is_empty() {
        return (true, None);
    }
    let Ok(now) = Timestamp::from_second(evaluated_at) else { return (false, None) };
    match all_open_from(groups, windows, now) {
        Some(from) if from == now => (true, None),
        from => (false, from.map(|t| t.to_string())),
    }
}

/// Names of the windows that are open at a time.
pub(crate) fn open_windows(windows: &Windows, at: Timestamp) -> Vec<String> {
    windows.iter().filter(|(_, window)| window.open_from(at) == Some(at)).map(|(name, _)| name.clone()).collect()
}

fn all_open_from(groups: &BTreeSet<BTreeSet<String>>, windows: &Windows, now: Timestamp) -> Option<Timestamp> {
    let mut from = now;
    for _ in 0..MAX_STEPS {
        let mut latest = from;
        for group in groups {
            let open = group.iter().filter_map(|name| windows.get(name)).filter_map(|w| w.open_from(from)).min()?;
            latest = latest.max(open);
        }
        if latest == from {
            return Some(from);
        }
        from = latest;
    }
    None
}

fn weekday(name: &str) -> Option<Weekday> {
    Some(match name {
        "mon" => Weekday::Monday,
        "tue" => Weekday::Tuesday,
        "wed" => Weekday::Wednesday,
        "thu" => Weekday::Thursday,
        "fri" => Weekday::Friday,
        "sat" => Weekday::Saturday,
        "sun" => Weekday::Sunday,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(zone: &str, days: &[&str], opens: &str, closes: &str) -> WindowSpec {
        WindowSpec {
            zone: zone.to_owned(),
            days: days.iter().map(|d| (*d).to_owned()).collect(),
            opens: opens.to_owned(),
            closes: closes.to_owned(),
        }
    }

    fn windows() -> Windows {
        let week = ["mon", "tue", "wed", "thu", "fri"];
        Windows::from([
            ("office".to_owned(), spec("Europe/Berlin", &week, "09:00", "17:00").read().unwrap()),
            ("night".to_owned(), spec("Etc/UTC", &["sat"], "22:00", "02:00").read().unwrap()),
            ("morning".to_owned(), spec("Etc/UTC", &["mon"], "06:00", "08:30").read().unwrap()),
            ("weekend".to_owned(), spec("Etc/UTC", &["sun"], "00:00", "12:00").read().unwrap()),
        ])
    }

    fn at(names: &[&[&str]], time: &str) -> (bool, Option<String>) {
        let groups = names.iter().map(|g| g.iter().map(|n| (*n).to_owned()).collect()).collect();
        judge(&groups, &windows(), time.parse::<Timestamp>().unwrap().as_second())
    }

    #[test]
    fn a_closed_window_names_its_next_opening() {
        assert_eq!(at(&[&["office"]], "2026-03-13T16:00:00Z"), (false, Some("2026-03-16T08:00:00Z".to_owned())));
        assert_eq!(at(&[&["office"]], "2026-03-13T15:59:59Z"), (true, None));
        assert_eq!(at(&[&["office"]], "2026-03-16T07:59:59Z"), (false, Some("2026-03-16T08:00:00Z".to_owned())));
    }

    #[test]
    fn a_window_within_another_is_never_open_alone() {
        let read =
            |zone: &str, days: &[&str], opens: &str, closes: &str| spec(zone, days, opens, closes).read().unwrap();
        let office = read("Etc/UTC", &["mon", "tue"], "09:00", "17:00");
        for inner in [office.clone(), read("Etc/UTC", &["tue"], "09:01", "16:59")] {
            assert!(inner.is_within(&office));
        }
        for other in [
            read("Europe/Berlin", &["mon"], "10:00", "16:00"),
            read("Etc/UTC", &["mon", "wed"], "09:00", "17:00"),
            read("Etc/UTC", &["mon"], "08:59", "17:00"),
            read("Etc/UTC", &["mon"], "09:00", "17:01"),
            read("Etc/UTC", &["mon"], "18:00", "16:00"),
        ] {
            assert!(!other.is_within(&office), "{other:?}");
        }
        let night = read("Etc/UTC", &["mon"], "22:00", "06:00");
        assert!(read("Etc/UTC", &["mon"], "23:00", "05:00").is_within(&night) && !office.is_within(&night));
    }

    #[test]
    fn daylight_saving_moves_the_opening() {
        assert_eq!(at(&[&["office"]], "2026-03-27T20:00:00Z"), (false, Some("2026-03-30T07:00:00Z".to_owned())));
    }

    #[test]
    fn a_window_can_last_past_midnight() {
        assert!(at(&[&["night"]], "2026-03-14T23:00:00Z").0);
        assert!(at(&[&["night"]], "2026-03-15T01:59:59Z").0);
        assert_eq!(at(&[&["night"]], "2026-03-15T02:00:00Z"), (false, Some("2026-03-21T22:00:00Z".to_owned())));
    }

    #[test]
    fn any_of_one_list_and_all_of_two_must_be_open() {
        assert!(at(&[&["office", "night"]], "2026-03-14T23:00:00Z").0);
        assert_eq!(
            at(&[&["office"], &["morning"]], "2026-03-14T23:00:00Z"),
            (false, Some("2026-03-16T08:00:00Z".to_owned()))
        );
        assert_eq!(at(&[&["office"], &["weekend"]], "2026-03-14T23:00:00Z"), (false, None));
    }

    #[test]
    fn a_broken_window_names_everything_that_is_wrong() {
        let errors = spec("Mars/Olympus", &["mon", "noday"], "9am", "25:00").read().unwrap_err();
        assert_eq!(errors.len(), 4, "{errors:?}");
        assert_eq!(spec("Etc/UTC", &[], "09:00", "17:00").read().unwrap_err(), ["a window needs at least one day"]);
    }

    #[test]
    fn a_time_that_no_calendar_holds_is_closed() {
        let office = BTreeSet::from([BTreeSet::from(["office".to_owned()])]);
        assert_eq!(judge(&office, &windows(), i64::MAX), (false, None));
    }
}
