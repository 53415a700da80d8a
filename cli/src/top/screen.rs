//! What stands on the terminal, and what its keys do.

use buslane::NamePattern;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, TableState};

use super::detail;
use super::list::{Column, Shape, Sort, middle_cut, table};
use super::watch::{Topic, Watch};

/// From this height on, the selected topic is shown below the table.
const TALL: u16 = 40;
/// From this width on, the histogram of a topic stands beside the rest.
const WIDE: u16 = 140;
/// Columns of the histogram there.
const HISTOGRAM: u16 = 58;

const HELP: &str = "
  ↑ ↓ PgUp PgDn Home End  choose a topic, or scroll
  Enter                   open the topic; Esc goes back
  ← →                     sort by the column before, or the next
  r                       the other way round
  /                       only the topics whose name has this in it, or, with
                          a *, that match it; Enter keeps it, Esc ends it
  q, Ctrl-C               leave; so does Esc on the table

  MSG/S, BYTES/S  sent in a second, between the last two looks
  LAG             messages that the slowest subscriber has not released
  LOST            messages of a lossy topic that subscribers were too slow for
  SLEEP           subscribers that sleep: they have nothing to do
  WAIT            publishers that sleep until a subscriber has moved on
  UNACK           messages that the groups of a queue have not acknowledged
  P50, P99        latency, where messages carry the time when they were sent:
                  at each look, for each reader, how long the oldest message
                  that it has not released had been waiting; 0 if it had
                  released all. Looks while nothing is sent and nothing waits
                  don't count. Readers say from time to time, and when idle,
                  what they have released: while they are busy, this is more
                  than it really was.";

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Page {
    List,
    Topic(String),
    Help,
}

/// What follows a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Stay,
    /// End.
    Leave,
}

/// All that is not the bus's.
#[derive(Debug)]
pub struct Screen {
    page: Page,
    sort: Sort,
    filter: String,
    /// The filter is being typed.
    edits: bool,
    /// The filter, if it has a `*`; or why it is no pattern.
    pattern: Result<Option<NamePattern>, String>,
    /// By name: it stays when the order changes. `None`: the first one, whichever that is.
    selected: Option<String>,
    /// The first row, and the first line of a topic's page.
    table: TableState,
    scroll: u16,
    /// Columns and rows there were room for at last.
    shape: Shape,
    rows: u16,
}

impl Screen {
    /// The table, the busiest topic first.
    pub fn new() -> Self {
        Self {
            page: Page::List,
            sort: Sort {
                by: Column::Messages,
                reverse: false,
            },
            filter: String::new(),
            edits: false,
            pattern: Ok(None),
            selected: None,
            table: TableState::new(),
            scroll: 0,
            shape: Shape::default(),
            rows: 1,
        }
    }

    /// The topics that the filter lets through, in order.
    fn rows<'a>(&self, watch: &'a Watch) -> Vec<(&'a str, &'a Topic)> {
        let wanted = self.filter.to_lowercase();
        let is_shown = |name: &str| match &self.pattern {
            Ok(Some(pattern)) => pattern.matches(name),
            Ok(None) => name.to_lowercase().contains(&wanted),
            Err(_) => false,
        };
        let topics = watch.topics.iter();
        let mut rows: Vec<_> = topics
            .map(|(name, topic)| (name.as_str(), topic))
            .filter(|(name, _)| is_shown(name))
            .collect();
        rows.sort_by(|one, other| self.sort.compare(*one, *other));
        rows
    }

    /// Does what a key says.
    pub fn key(&mut self, key: KeyEvent, watch: &Watch) -> Next {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if is_control && matches!(key.code, KeyCode::Char('c')) {
            return Next::Leave;
        }
        if self.edits {
            self.edit(key.code);
            return Next::Stay;
        }
        match (key.code, &self.page) {
            (KeyCode::Char('q'), _) | (KeyCode::Esc, Page::List) => return Next::Leave,
            (KeyCode::Esc | KeyCode::Backspace, _) => self.go(Page::List),
            (KeyCode::Char('?'), _) => self.go(Page::Help),
            (KeyCode::Char('/'), Page::List) => self.edits = true,
            (KeyCode::Char('r'), Page::List) => self.sort.reverse = !self.sort.reverse,
            (KeyCode::Left, Page::List) => self.sort_by(-1),
            (KeyCode::Right, Page::List) => self.sort_by(1),
            (KeyCode::Enter, Page::List) => {
                let rows = self.rows(watch);
                if let Some((name, _)) = rows.get(self.row(&rows)) {
                    self.go(Page::Topic(String::from(*name)));
                }
            }
            (KeyCode::Up | KeyCode::Char('k'), _) => self.step(-1, watch),
            (KeyCode::Down | KeyCode::Char('j'), _) => self.step(1, watch),
            (KeyCode::PageUp, _) => self.step(-isize::from(self.rows.cast_signed()), watch),
            (KeyCode::PageDown, _) => self.step(isize::from(self.rows.cast_signed()), watch),
            (KeyCode::Home, _) => self.step(isize::MIN, watch),
            (KeyCode::End, _) => self.step(isize::MAX, watch),
            _ => {}
        }
        Next::Stay
    }

    fn go(&mut self, page: Page) {
        self.page = page;
        self.scroll = 0;
    }

    fn edit(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.edits = false,
            KeyCode::Esc => {
                self.edits = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(typed) => self.filter.push(typed),
            _ => {}
        }
        let pattern = self
            .filter
            .contains('*')
            .then(|| NamePattern::parse(&self.filter).map_err(|error| error.to_string()));
        self.pattern = pattern.transpose();
    }

    fn sort_by(&mut self, step: isize) {
        let now = self
            .shape
            .columns
            .iter()
            .position(|column| *column == self.sort.by);
        // One that there is no room for any more: from the first on.
        let next = now.map_or(0, |now| now.saturating_add_signed(step));
        if let Some(&by) = self.shape.columns.get(next) {
            let reverse = false;
            self.sort = Sort { by, reverse };
        }
    }

    fn step(&mut self, step: isize, watch: &Watch) {
        if self.page != Page::List {
            let scroll = isize::from(self.scroll.cast_signed()).saturating_add(step);
            self.scroll = u16::try_from(scroll.max(0)).unwrap_or(u16::MAX);
            return;
        }
        let rows = self.rows(watch);
        let next = self
            .row(&rows)
            .saturating_add_signed(step)
            .min(rows.len().saturating_sub(1));
        self.selected = rows.get(next).map(|(name, _)| String::from(*name));
    }

    /// Which row is selected; the first one if that topic is gone, or hidden.
    fn row(&self, rows: &[(&str, &Topic)]) -> usize {
        let is_selected = |(name, _): &(&str, &Topic)| Some(*name) == self.selected.as_deref();
        rows.iter().position(is_selected).unwrap_or(0)
    }

    /// Draws all of it.
    pub fn draw(&mut self, frame: &mut Frame<'_>, watch: &Watch) {
        let [title, body, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.rows = body.height.saturating_sub(1).max(1);
        match self.page.clone() {
            Page::List => self.draw_list(frame, watch, title, body),
            Page::Topic(name) => {
                let shown = middle_cut(&name, title.width);
                frame.render_widget(Line::from(shown).style(Style::new().bold()), title);
                match watch.topics.get(&name) {
                    Some(topic) => self.draw_topic(frame, topic, body),
                    None => {
                        let trouble = watch.troubles.get(&name).map(String::as_str);
                        let said = trouble.unwrap_or("This topic was removed.");
                        frame.render_widget(wrapped(said), body);
                    }
                }
            }
            Page::Help => {
                frame.render_widget(Line::from("buslane top").style(Style::new().bold()), title);
                self.draw_scrolled(frame, HELP.lines().map(Line::from).collect(), body);
            }
        }
        frame.render_widget(self.last_line().style(Style::new().dim()), keys);
    }

    fn last_line(&self) -> Line<'static> {
        match &self.page {
            Page::List if self.edits => Line::from(format!(
                "filter: {}▏  Enter keeps it, Esc ends it",
                self.filter
            )),
            Page::List => {
                Line::from("↑↓ choose  Enter open  ←→ sort  r reverse  / filter  ? help  q leave")
            }
            _ => Line::from("↑↓ scroll  Esc back  ? help  q leave"),
        }
    }

    fn draw_list(&mut self, frame: &mut Frame<'_>, watch: &Watch, title: Rect, body: Rect) {
        let rows = self.rows(watch);
        let selected = self.row(&rows);
        frame.render_widget(self.title(watch, rows.len(), title.width), title);
        let Some(&(name, topic)) = rows.get(selected) else {
            frame.render_widget(wrapped(&self.nothing(watch)), body);
            return;
        };
        let lengths = rows.iter().map(|(name, _)| name.chars().count());
        self.shape = Shape::new(body.width, lengths.max().unwrap_or(0));
        let mut list = body;
        if body.height >= TALL {
            let needed = u16::try_from(rows.len() + 1).unwrap_or(u16::MAX);
            let [above, _, title, below] = Layout::vertical([
                Constraint::Length(needed.min(body.height / 2)),
                Constraint::Length(1),
                Constraint::Length(1),
                Constraint::Min(0),
            ])
            .areas(body);
            list = above;
            let line = format!("── {} ", middle_cut(name, title.width.saturating_sub(8)));
            let rest = usize::from(title.width).saturating_sub(line.chars().count());
            frame.render_widget(Line::from(line + &"─".repeat(rest)), title);
            self.draw_topic(frame, topic, below);
        } else if name.chars().count() > usize::from(self.shape.name) {
            let [above, whole] =
                Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(body);
            list = above;
            frame.render_widget(Line::from(middle_cut(name, whole.width)), whole);
        }
        self.rows = list.height.saturating_sub(1).max(1);
        self.table.select(Some(selected));
        // In a window that has grown, or when there are fewer: no room is left empty.
        let last = rows.len().saturating_sub(usize::from(self.rows));
        *self.table.offset_mut() = self.table.offset().min(last);
        let table = table(&rows, &self.shape, self.sort);
        frame.render_stateful_widget(table, list, &mut self.table);
    }

    /// Where the bus is, what it has, and what is wrong.
    fn title(&self, watch: &Watch, shown: usize, width: u16) -> Line<'static> {
        let all = watch.topics.len();
        let mut parts = vec![match all {
            1 => String::from("1 topic"),
            _ if shown == all => format!("{all} topics"),
            _ => format!("{shown} of {all} topics"),
        }];
        if !self.filter.is_empty() && !self.edits {
            parts.push(format!("filter: {}", self.filter));
        }
        if let Some((name, why)) = watch.troubles.iter().next() {
            parts.push(match watch.troubles.len() {
                1 => format!("{name}: {why}"),
                more => format!("{more} can't be read, one is {name}: {why}"),
            });
        }
        let rest = format!(": {}", parts.join("; "));
        let room = width.saturating_sub(rest.chars().count() as u16).max(20);
        Line::from(middle_cut(&watch.place(), room) + &rest).style(Style::new().bold())
    }

    fn nothing(&self, watch: &Watch) -> String {
        match &self.pattern {
            Err(why) => why.clone(),
            Ok(_) if watch.topics.is_empty() => {
                String::from("No topics: `buslane send TOPIC` and `buslane recv TOPIC` make them.")
            }
            Ok(_) => format!("No topic matches {}.", self.filter),
        }
    }

    fn draw_topic(&mut self, frame: &mut Frame<'_>, topic: &Topic, area: Rect) {
        let mut facts = detail::facts(topic);
        if area.width < WIDE {
            facts.push(Line::default());
            facts.extend(detail::latency(topic, area.width));
            return self.draw_scrolled(frame, facts, area);
        }
        let [left, _, right] = Layout::horizontal([
            Constraint::Min(0),
            Constraint::Length(2),
            Constraint::Length(HISTOGRAM),
        ])
        .areas(area);
        self.draw_scrolled(frame, facts, left);
        frame.render_widget(Paragraph::new(detail::latency(topic, right.width)), right);
    }

    fn draw_scrolled(&mut self, frame: &mut Frame<'_>, lines: Vec<Line<'_>>, area: Rect) {
        let last = u16::try_from(lines.len())
            .unwrap_or(u16::MAX)
            .saturating_sub(area.height);
        self.scroll = self.scroll.min(last);
        frame.render_widget(Paragraph::new(lines).scroll((self.scroll, 0)), area);
    }
}

fn wrapped(text: &str) -> Paragraph<'static> {
    Paragraph::new(text.to_owned()).wrap(ratatui::widgets::Wrap { trim: true })
}
