//! Days and dates of the Gregorian calendar.

pub(super) const SECONDS_PER_DAY: i64 = 86_400;

/// Days in 400 years.
const CYCLE: i64 = 146_097;

/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;

/// Days from 1970-01-01 to the date. Months count from 1; a day past the month's end runs on
/// into the next one.
pub(super) fn days_from_date(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day last.
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9).rem_euclid(12);
    let in_cycle = year.rem_euclid(400);
    let days = in_cycle * 365 + in_cycle / 4 - in_cycle / 100;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    year.div_euclid(400) * CYCLE + days + day_of_year - EPOCH
}

/// Year, month from 1 and day from 1 of the day that many days after 1970-01-01.
pub(super) fn date_from_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(EPOCH);
    let day = days.rem_euclid(CYCLE);
    let leap_days = day / 1_460 - day / 36_524 + day / (CYCLE - 1);
    let year_in_cycle = (day - leap_days) / 365;
    let day_of_year = day - (365 * year_in_cycle + year_in_cycle / 4 - year_in_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = days.div_euclid(CYCLE) * 400 + year_in_cycle + i64::from(month <= 2);
    (year, month, day_of_month)
}

/// Day of the week, 1 is Sunday.
pub(super) fn day_of_week(days: i64) -> i64 {
    (days.rem_euclid(7) + 4) % 7 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (days, date, weekday) in [
            (0, (1970, 1, 1), 5),
            (11_016, (2000, 2, 29), 3),
            (11_017, (2000, 3, 1), 4),
            (19_782, (2024, 2, 29), 5),
            (47_540, (2100, 2, 28), 1),
            (47_541, (2100, 3, 1), 2),
        ] {
            assert_eq!(date_from_days(days), date);
            assert_eq!(days_from_date(date.0, date.1, date.2), days);
            assert_eq!(day_of_week(days), weekday, "{date:?}");
        }
    }

    #[test]
    fn every_day_of_nine_centuries_round_trips() {
        let mut last = date_from_days(-200_000);
        for days in -199_999..130_000 {
            let (y, m, d) = date_from_days(days);
            assert_eq!(days_from_date(y, m, d), days);
            assert!((y, m, d) > last);
            last = (y, m, d);
        }
    }
}
