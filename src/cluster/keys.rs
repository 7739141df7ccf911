//! The names of all keys and topics in Redis, in one place, so that two scripts cannot disagree about a name. The
//! layout of each key is documented beside the scripts that change it.

use super::Topic;
use crate::app::AppId;

/// The names of all keys and topics.
#[derive(Clone, Debug)]
pub(super) struct RedisKeys {
    /// `cluster.prefix`: several clusters may share a Redis, each with its own.
    prefix: String,
}

/// The meaning of a topic's name in Redis.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum TopicName<'a> {
    Topic {
        app: &'a str,
        channel: &'a str,
    },
    /// To every node.
    All,
    /// An app has happenings for webhooks.
    Wakeup {
        app: &'a str,
    },
    /// For the node that sent it, to test its subscribed connection.
    Probe,
    /// To one node, by its number.
    Node,
}

/// A topic in the list of what a lease holds.
pub(super) fn held_topic(topic: &Topic) -> String {
    format!("c{}/{}", topic.app, topic.channel)
}

impl RedisKeys {
    /// Keys of one cluster; all others begin with something else.
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// `v`, `m`, `r`, `k`, `c`, `l` or `0` of a channel.
    pub(super) fn channel_key(&self, topic: &Topic, part: char) -> String {
        format!("{}:{{{}/{}}}:{part}", self.prefix, topic.app, topic.channel)
    }

    /// `t`, `v`, `o`, `w`, `b`, `e`, `s`, `q`, `z`, `x` or `0` of an app.
    pub(super) fn app_key(&self, app: &AppId, part: char) -> String {
        format!("{}:{{{app}}}:{part}", self.prefix)
    }

    /// The log of a channel, and that it was cut off for its bytes.
    pub(super) fn log_keys(&self, topic: &Topic) -> [String; 2] {
        let log = self.channel_key(topic, 'l');
        let cut = format!("{log}t");
        [log, cut]
    }

    /// The beginning of the keys that tell how many logs an app has.
    pub(super) fn logs_of_app(&self, app: &AppId) -> String {
        format!("{}:{{{app}}}:g:", self.prefix)
    }

    /// The counts of an app under a lease.
    pub(super) fn lease_counts(&self, app: &AppId, lease: &str) -> String {
        format!("{}:{{{app}}}:n:{lease}", self.prefix)
    }

    /// Channels and members of an app that a lease holds, for webhooks.
    pub(super) fn lease_held(&self, app: &AppId, lease: &str) -> String {
        format!("{}:{{{app}}}:h:{lease}", self.prefix)
    }

    /// The prefix of [`Self::lease_counts`] of every lease.
    pub(super) fn counts_of_leases(&self, app: &AppId) -> String {
        self.lease_counts(app, "")
    }

    /// The prefix of [`Self::lease_held`] of every lease.
    pub(super) fn held_of_leases(&self, app: &AppId) -> String {
        self.lease_held(app, "")
    }

    /// The leases that hold on the server which has the tag's slot.
    pub(super) fn fence_key(&self, tag: u16) -> String {
        format!("{}:fence:{{{tag}}}", self.prefix)
    }

    /// The channels, members and apps that a lease may hold something of, on that server.
    pub(super) fn lease_key(&self, tag: u16, lease: &str) -> String {
        format!("{}:lease:{{{tag}}}:{lease}", self.prefix)
    }

    /// Written to a server that was away, to see whether it takes writes; it expires at once.
    pub(super) fn back_key(&self, tag: u16) -> String {
        format!("{}:back:{{{tag}}}", self.prefix)
    }

    /// The tags of all servers of a Redis Cluster that some node has a lease on.
    pub(super) fn tags_key(&self) -> String {
        format!("{}:tags", self.prefix)
    }

    /// The leases of nodes before version 0.2, and what one of them holds.
    pub(super) fn leases_of_old(&self) -> String {
        format!("{}:leases", self.prefix)
    }

    /// The same for a lease of an older version.
    pub(super) fn lease_of_old(&self, lease: &str) -> String {
        format!("{}:lease:{lease}", self.prefix)
    }

    /// Wakes the node that reads an app's webhook log; on the same server as the app's keys.
    pub(super) fn wakeup_topic(&self, app: &AppId) -> String {
        format!("{}:wakeup_topic:{{{app}}}", self.prefix)
    }

    /// The prefix of the key with the last event number of each node.
    pub(super) fn said(&self, app: &AppId) -> String {
        format!("{}:{{{app}}}:s:", self.prefix)
    }

    /// It is kept where the channel's keys are.
    pub(super) fn topic_name(&self, topic: &Topic) -> String {
        format!("{}:on:{{{}/{}}}", self.prefix, topic.app, topic.channel)
    }

    /// The topic of what concerns every node: users to be disconnected, rights to be taken back.
    pub(super) fn all_nodes_topic(&self) -> String {
        format!("{}:{{all}}", self.prefix)
    }

    /// The log of what was said to all nodes.
    pub(super) fn log_of_all(&self) -> String {
        format!("{}:{{all}}:l", self.prefix)
    }

    /// The same, and that it was cut off for its bytes.
    pub(super) fn log_keys_of_all(&self) -> [String; 2] {
        let log = self.log_of_all();
        let cut = format!("{log}t");
        [log, cut]
    }

    /// The topic by which a node tests its subscribed connection.
    pub(super) fn probe_topic(&self, lease: &str) -> String {
        format!("{}:probe:{lease}", self.prefix)
    }

    /// The topic of one node.
    pub(super) fn node_topic(&self, node: u64) -> String {
        format!("{}:node:{node:016x}", self.prefix)
    }

    /// Reads what [`Self::topic_name`], [`Self::all_nodes_topic`], [`Self::probe_topic`] or [`Self::node_topic`] wrote.
    pub(super) fn parse_topic<'a>(&self, name: &'a str) -> Option<TopicName<'a>> {
        let rest = name.strip_prefix(self.prefix.as_str())?.strip_prefix(':')?;
        if let Some(topic) = rest.strip_prefix("on:{") {
            // An app's id has neither `/` nor `:`, so that the first `/` ends it.
            let (app, channel) = topic.strip_suffix('}')?.split_once('/')?;
            return Some(TopicName::Topic { app, channel });
        }
        if rest == "{all}" {
            return Some(TopicName::All);
        }
        if rest.starts_with("node:") {
            return Some(TopicName::Node);
        }
        if let Some(app) = rest.strip_prefix("wakeup_topic:{") {
            return Some(TopicName::Wakeup { app: app.strip_suffix('}')? });
        }
        rest.starts_with("probe:").then_some(TopicName::Probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel::ChannelName;

    #[test]
    fn names_are_read_as_they_were_written() {
        let keys = RedisKeys::new("a:b");
        let channel = ChannelName::parse("#server-to-user-x/y:{z}", 200).unwrap();
        let topic = Topic { app: AppId::new("app"), channel };
        let name = keys.topic_name(&topic);
        let named = TopicName::Topic { app: "app", channel: "#server-to-user-x/y:{z}" };
        assert_eq!(keys.parse_topic(&name), Some(named));
        assert_eq!(keys.parse_topic(&keys.all_nodes_topic()), Some(TopicName::All));
        assert_eq!(keys.parse_topic(&keys.probe_topic("7")), Some(TopicName::Probe));
        assert_eq!(keys.parse_topic(&keys.node_topic(7)), Some(TopicName::Node));
        let app = AppId::new("app");
        assert_eq!(
            keys.parse_topic(&keys.wakeup_topic(&app)),
            Some(TopicName::Wakeup { app: "app" })
        );
        for foreign in
            ["", "a:b", "a:bon:{x/y}", "other:on:{x/y}", "a:b:on:{x}", "a:b:on:x/y", "reverb"]
        {
            assert_eq!(keys.parse_topic(foreign), None, "{foreign}");
        }
    }
}
