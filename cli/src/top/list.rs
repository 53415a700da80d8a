//! The table of topics: its columns, their order, and the order of its rows.

use std::cmp::Ordering;
use std::time::Duration;

use ratatui::layout::Constraint;
use ratatui::style::{Modifier, Style};
use ratatui::widgets::{Cell, Row, Table};

use super::watch::Topic;
use crate::short;

/// What a column shows. In the order in which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Topic,
    Pattern,
    Type,
    Publishers,
    Subscribers,
    Messages,
    Bytes,
    Lag,
    Lost,
    Sleepers,
    Waiting,
    Unacked,
    Median,
    Rare,
}

use Column::{
    Bytes, Lag, Lost, Median, Messages, Pattern, Publishers, Rare, Sleepers, Subscribers, Type,
    Unacked, Waiting,
};

impl Column {
    const ALL: [Self; 14] = [
        Self::Topic,
        Pattern,
        Type,
        Publishers,
        Subscribers,
        Messages,
        Bytes,
        Lag,
        Lost,
        Sleepers,
        Waiting,
        Unacked,
        Median,
        Rare,
    ];
    /// Where there is not room for all, the last ones of these give way first.
    const BY_WEIGHT: [Self; 14] = [
        Self::Topic,
        Messages,
        Lag,
        Lost,
        Rare,
        Sleepers,
        Subscribers,
        Publishers,
        Unacked,
        Bytes,
        Pattern,
        Median,
        Waiting,
        Type,
    ];

    /// Its title, and how wide it is, with room for a mark beside the title.
    fn title(self) -> (&'static str, u16) {
        match self {
            Self::Topic => ("TOPIC", 18),
            Pattern => ("PATTERN", 8),
            Type => ("TYPE", 16),
            Publishers => ("PUB", 4),
            Subscribers => ("SUB", 4),
            Messages => ("MSG/S", 6),
            Bytes => ("BYTES/S", 8),
            Lag => ("LAG", 5),
            Lost => ("LOST", 5),
            Sleepers => ("SLEEP", 6),
            Waiting => ("WAIT", 5),
            Unacked => ("UNACK", 6),
            Median => ("P50", 6),
            Rare => ("P99", 6),
        }
    }

    fn is_text(self) -> bool {
        matches!(self, Self::Topic | Pattern | Type)
    }

    fn that_fit(width: u16) -> Vec<Self> {
        let mut left = width;
        let taken = Self::BY_WEIGHT.into_iter().take_while(|column| {
            let wanted = column.title().1 + u16::from(*column != Self::Topic);
            let fits = *column == Self::Topic || wanted <= left;
            left = left.saturating_sub(wanted);
            fits
        });
        let taken: Vec<_> = taken.collect();
        let mut columns = Self::ALL.to_vec();
        columns.retain(|column| taken.contains(column));
        columns
    }

    fn cell(self, name: &str, topic: &Topic) -> String {
        let report = &topic.now;
        let some = |number: u64| match number {
            0 => String::from("-"),
            _ => short::count(number as f64),
        };
        let latency = |quantile| {
            let waited = topic.waited_ns(quantile).map(Duration::from_nanos);
            waited.map_or_else(|| "-".into(), short::span)
        };
        let rates = topic.rates();
        match self {
            Self::Topic => name.into(),
            Pattern => report.pattern.into(),
            Type => report.type_name.clone(),
            Publishers => report.publishers().to_string(),
            Subscribers => report.subscribers().to_string(),
            Messages => rates.map_or_else(|| "-".into(), |(messages, _)| short::count(messages)),
            Bytes => rates.map_or_else(|| "-".into(), |(_, bytes)| short::bytes(bytes)),
            Lag => some(report.lag()),
            Lost => some(report.lost()),
            Sleepers => some(report.sleepers() as u64),
            Waiting => some(report.waiting() as u64),
            Unacked => some(report.unacked()),
            Median => latency(0.5),
            Rare => latency(0.99),
        }
    }

    fn number(self, topic: &Topic) -> f64 {
        let report = &topic.now;
        let latency = |quantile| topic.waited_ns(quantile).map_or(-1.0, |ns| ns as f64);
        match self {
            Self::Topic | Pattern | Type => 0.0,
            Publishers => report.publishers() as f64,
            Subscribers => report.subscribers() as f64,
            Messages => topic.rates().unwrap_or_default().0,
            Bytes => topic.rates().unwrap_or_default().1,
            Lag => report.lag() as f64,
            Lost => report.lost() as f64,
            Sleepers => report.sleepers() as f64,
            Waiting => report.waiting() as f64,
            Unacked => report.unacked() as f64,
            Median => latency(0.5),
            Rare => latency(0.99),
        }
    }
}

/// The order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub by: Column,
    /// The other way round: text upwards and numbers downwards is the usual one.
    pub reverse: bool,
}

impl Sort {
    /// Whether one topic stands before another; those that are equal by name.
    pub fn compare(
        self,
        (name, topic): (&str, &Topic),
        (other_name, other): (&str, &Topic),
    ) -> Ordering {
        let order = match self.by {
            Column::Topic => name.cmp(other_name),
            Pattern => topic.now.pattern.cmp(other.now.pattern),
            Type => topic.now.type_name.cmp(&other.now.type_name),
            by => by.number(other).total_cmp(&by.number(topic)),
        };
        let order = if self.reverse { order.reverse() } else { order };
        order.then_with(|| name.cmp(other_name))
    }
}

/// How the columns stand in so many cells.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Those that there is room for.
    pub columns: Vec<Column>,
    /// How wide the names are.
    pub name: u16,
    spacing: u16,
}

impl Shape {
    /// For names of at most `longest` characters.
    pub fn new(width: u16, longest: usize) -> Self {
        let columns = Column::that_fit(width);
        let others: u16 = columns.iter().skip(1).map(|column| column.title().1).sum();
        let gaps = columns.len().saturating_sub(1) as u16;
        let room = width.saturating_sub(others + gaps);
        let longest = u16::try_from(longest).unwrap_or(u16::MAX);
        let name = longest.max(Column::Topic.title().1).min(room);
        Self {
            columns,
            name,
            spacing: 1 + u16::from(room - name >= gaps),
        }
    }
}

/// The table, in the order in which the rows are.
pub fn table<'a>(rows: &[(&'a str, &'a Topic)], shape: &Shape, sort: Sort) -> Table<'a> {
    let columns = &shape.columns;
    let width = |column: &Column| match column {
        Column::Topic => shape.name,
        _ => column.title().1,
    };
    let aligned = |column: Column, text: String| match column.is_text() {
        true => middle_cut(&text, width(&column)),
        false => format!("{text:>width$}", width = usize::from(width(&column))),
    };
    let header = columns.iter().map(|&column| {
        let mark = match (column == sort.by, sort.reverse != column.is_text()) {
            (false, _) => "",
            (true, true) => "▲",
            (true, false) => "▼",
        };
        Cell::new(aligned(column, format!("{}{mark}", column.title().0)))
    });
    let cells = |&(name, topic): &(&'a str, &'a Topic)| {
        let cells = columns.iter().map(|&column| {
            let cell = Cell::new(aligned(column, column.cell(name, topic)));
            match column {
                // What somebody should look at.
                Lost if topic.now.lost() > 0 => cell.style(Modifier::BOLD),
                Waiting if topic.now.waiting() > 0 => cell.style(Modifier::BOLD),
                _ => cell,
            }
        });
        Row::new(cells.collect::<Vec<_>>())
    };
    let widths = columns
        .iter()
        .map(|column| Constraint::Length(width(column)));
    Table::new(rows.iter().map(cells), widths.collect::<Vec<_>>())
        .header(Row::new(header.collect::<Vec<_>>()).style(Style::new().reversed()))
        .row_highlight_style(Style::new().reversed())
        .column_spacing(shape.spacing)
}

/// As much of a text as has room, without its middle: names differ at their ends.
pub fn middle_cut(text: &str, width: u16) -> String {
    let width = usize::from(width);
    let len = text.chars().count();
    if len <= width {
        return text.into();
    }
    let kept = width.saturating_sub(1);
    let head: String = text.chars().take(kept / 2).collect();
    let tail: String = text.chars().skip(len - (kept - kept / 2)).collect();
    format!("{head}…{tail}")
}
