//! `buslane rm`: removes a topic, or a whole bus.

use crate::Common;
use crate::failure::Failure;
use crate::ls::open_existing;

/// Remove a topic, or a whole bus
///
/// Refuses while a living process uses it. With --force those that do are told, when they next look who is there.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  buslane rm news                 the topic, with all that it holds
  buslane rm jobs --group audit   a group of a work queue: nothing waits for it any more
  buslane rm orders --subscription billing
                                  a named subscription of a durable topic: the same
  buslane rm --whole-bus          the bus that --bus names, with all its topics")]
pub struct Args {
    /// The topic
    #[arg(
        value_name = "TOPIC",
        required_unless_present = "whole_bus",
        conflicts_with = "whole_bus"
    )]
    topic: Option<String>,
    /// Remove this group of the queue TOPIC, not the queue
    #[arg(long, value_name = "GROUP", requires = "topic")]
    group: Option<String>,
    /// Remove this named subscription of the durable topic TOPIC, not the topic: what only it had not received is kept no more
    #[arg(
        long,
        value_name = "NAME",
        requires = "topic",
        conflicts_with = "group"
    )]
    subscription: Option<String>,
    /// Remove the bus, with all its topics
    #[arg(long)]
    whole_bus: bool,
    /// Also while it is in use
    #[arg(long)]
    force: bool,
}

/// Removes it.
pub fn run(common: &Common, args: &Args) -> Result<(), Failure> {
    let bus = open_existing(common)?;
    if let (Some(topic), Some(name)) = (&args.topic, &args.subscription) {
        let topic = bus.topic_builder(topic).create(false).open()?;
        return Ok(topic.remove_subscription(name)?);
    }
    match (&args.topic, &args.group) {
        (Some(topic), Some(group)) => {
            let queue = bus.queue_builder(topic).create(false).open()?;
            queue.remove_group(group, args.force)?;
        }
        (Some(topic), None) => bus.remove_topic(topic, args.force)?,
        (None, _) => bus.remove(args.force)?,
    }
    Ok(())
}
