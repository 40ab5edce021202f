//! The queues in front of each link, and how fast they may empty.

use std::{collections::VecDeque, time::Duration};

use crate::{
    dedup::Key,
    id::MeshId,
    limits::Limits,
    link::{MAX_FRAME, Role},
};

/// Between fragments for everybody, and between directed ones: the pace of the apps (BitChat
/// protocol reference, section 6.2).
const BROADCAST_PACE: Duration = Duration::from_millis(30);
const DIRECTED_PACE: Duration = Duration::from_millis(25);
/// Between other frames to a phone.
const PHONE_PACE: Duration = Duration::from_millis(4);
/// What is for a gateway at the other end leaves as the link takes it
/// ([`Event::Room`](crate::Event::Room)). Only beyond nine tenths of what the gateway takes in this span
/// ([`Limits::frames_per_link_a_second`]) it waits: the rest would be dropped there.
const GATEWAY_SPAN: Duration = Duration::from_secs(1);
/// Between any frames where no phone is.
const PLAIN_PACE: Duration = Duration::from_millis(1);

/// Two ends of a session, whose frames must not overtake each other.
pub(super) type Flow = (MeshId, MeshId);

/// Something that waits for a link.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) frame: Vec<u8>,
    /// The session it belongs to, if it does.
    pub(super) flow: Option<Flow>,
    /// Whether it is part of a packet, and whether that is for one peer.
    pub(super) fragment: Option<Reach>,
    /// Whether it is somebody else's.
    pub(super) is_relayed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    Broadcast,
    Directed,
}

/// One link and what waits for it.
pub(super) struct Link {
    pub(super) role: Role,
    pub(super) max_frame: usize,
    phone: bool,
    /// Whether a gateway is, by its announce: then what is for it needs no phone's pace.
    pub(super) is_gateway: bool,
    /// The peer at the other end, as far as its announces tell.
    pub(super) bound: Option<MeshId>,
    pub(super) bound_at: Duration,
    /// Who announced itself over it last as the neighbour, where that is somebody else, and by which
    /// packet.
    pub(super) rival: Option<(MeshId, Key)>,
    /// When that peer last announced itself over it; announces go over all links of a pair.
    pub(super) announced_at: Duration,
    /// Whom it has still to hear of, after it came up.
    pub(super) greet: VecDeque<MeshId>,
    pub(super) greet_at: Duration,
    /// Until when we may be answered what we asked.
    pub(super) asked_until: Duration,
    pub(super) frames: Rate,
    pub(super) relays: Rate,
    pub(super) handshakes: Rate,
    pub(super) new_peers: Rate,
    pub(super) pings: Rate,
    pub(super) syncs: Rate,
    fast: VecDeque<Waiting>,
    bulk: VecDeque<Waiting>,
    fast_at: Duration,
    bulk_at: Duration,
    capacity: usize,
    /// Between frames to a gateway, on average.
    gateway_pace: Duration,
    /// How many frames the link takes now, where it tells.
    takes: Option<usize>,
}

impl Link {
    pub(super) fn new(
        now: Duration,
        role: Role,
        max_frame: usize,
        phone: bool,
        limits: &Limits,
    ) -> Self {
        let second = Duration::from_secs(1);
        let minute = Duration::from_secs(60);
        Self {
            role,
            max_frame: max_frame.min(MAX_FRAME),
            phone,
            is_gateway: false,
            bound: None,
            bound_at: now,
            rival: None,
            announced_at: now,
            greet: VecDeque::new(),
            greet_at: now,
            asked_until: Duration::ZERO,
            frames: Rate::new(limits.frames_per_link_a_second, second, 2),
            relays: Rate::new(limits.relays_per_link_a_second, second, 2),
            handshakes: Rate::new(limits.handshakes_per_link_a_minute, minute, 1),
            new_peers: Rate::new(limits.new_peers_per_link_a_minute, minute, 1),
            pings: Rate::new(limits.pings_per_link, Duration::from_secs(10), 1),
            syncs: Rate::new(8, Duration::from_secs(30), 1),
            fast: VecDeque::new(),
            bulk: VecDeque::new(),
            fast_at: now,
            bulk_at: now,
            capacity: limits.frames_per_link,
            gateway_pace: Duration::from_secs(10) / 9 / limits.frames_per_link_a_second.max(1),
            takes: None,
        }
    }

    /// The link takes so many frames more.
    pub(super) fn make_room(&mut self, frames: usize) {
        self.takes = Some(self.takes.unwrap_or(0).saturating_add(frames));
    }

    /// How many more frames of ours it would take.
    pub(super) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.waiting())
    }

    pub(super) fn waiting(&self) -> usize {
        self.fast.len() + self.bulk.len()
    }

    /// Queues a frame; false if there is no room for it.
    pub(super) fn push(&mut self, waiting: Waiting) -> bool {
        let limit = if waiting.is_relayed { self.capacity / 4 * 3 } else { self.capacity };
        if self.waiting() >= limit {
            return false;
        }
        let follows =
            waiting.flow.is_some() && self.bulk.iter().any(|earlier| earlier.flow == waiting.flow);
        if waiting.fragment.is_some() || follows {
            self.bulk.push_back(waiting);
        } else {
            self.fast.push_back(waiting);
        }
        true
    }

    /// The next frame that may go now.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Waiting> {
        if self.takes == Some(0) {
            return None;
        }
        let waiting = self.pop_due(now)?;
        self.takes = self.takes.map(|takes| takes - 1);
        Some(waiting)
    }

    fn pop_due(&mut self, now: Duration) -> Option<Waiting> {
        if self.fast_at <= now
            && let Some(waiting) = self.fast.pop_front()
        {
            self.fast_at = now + if self.phone { PHONE_PACE } else { PLAIN_PACE };
            return Some(waiting);
        }
        if self.bulk_at <= now
            && let Some(waiting) = self.bulk.pop_front()
        {
            // What goes further than this neighbour keeps to the pace that relays allow.
            let ends_here = waiting.flow.is_some_and(|(_, to)| self.bound == Some(to));
            self.bulk_at = match (self.phone, waiting.fragment) {
                (false, _) => now + PLAIN_PACE,
                (true, _) if self.is_gateway && ends_here => {
                    self.bulk_at.max(now.saturating_sub(GATEWAY_SPAN)) + self.gateway_pace
                }
                (true, Some(Reach::Broadcast)) => now + BROADCAST_PACE,
                (true, Some(Reach::Directed)) => now + DIRECTED_PACE,
                (true, None) => now + PHONE_PACE,
            };
            return Some(waiting);
        }
        None
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let takes = self.takes != Some(0);
        let fast = (takes && !self.fast.is_empty()).then_some(self.fast_at);
        let bulk = (takes && !self.bulk.is_empty()).then_some(self.bulk_at);
        let greet = (!self.greet.is_empty()).then_some(self.greet_at);
        [fast, bulk, greet].into_iter().flatten().min()
    }
}

/// So many in a span of time, and no more than a few spans' worth at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    interval: Duration,
    burst: Duration,
    /// When all that was taken will have been earned.
    earned_at: Duration,
}

impl Rate {
    pub(super) fn new(count: u32, span: Duration, spans: u32) -> Self {
        Self { interval: span / count.max(1), burst: span * spans, earned_at: Duration::ZERO }
    }

    pub(super) fn take(&mut self, now: Duration) -> bool {
        let earned_at = self.earned_at.max(now) + self.interval;
        let may = earned_at <= now + self.burst;
        if may {
            self.earned_at = earned_at;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_allows_its_burst_and_then_its_share() {
        let mut rate = Rate::new(10, Duration::from_secs(1), 2);
        let now = Duration::from_secs(5);
        assert_eq!((0..100).filter(|_| rate.take(now)).count(), 20);
        let later = now + Duration::from_millis(500);
        assert_eq!((0..100).filter(|_| rate.take(later)).count(), 5);
    }

    #[test]
    fn frames_of_a_session_do_not_overtake_its_fragments() {
        let now = Duration::ZERO;
        let mut link = Link::new(now, Role::Central, 512, true, &Limits::default());
        let flow = Some((MeshId([1; 8]), MeshId([2; 8])));
        let waiting = |frame: u8, flow, fragment| Waiting {
            frame: vec![frame],
            flow,
            fragment,
            is_relayed: false,
        };
        assert!(link.push(waiting(1, flow, Some(Reach::Directed))));
        assert!(link.push(waiting(2, flow, Some(Reach::Directed))));
        assert!(link.push(waiting(3, flow, None)));
        assert!(link.push(waiting(4, None, None)));
        let (mut order, mut times) = (Vec::new(), Vec::new());
        while let Some(at) = link.next_deadline() {
            let frame = link.pop(at).unwrap().frame[0];
            order.push(frame);
            times.push(at.as_millis());
        }
        assert_eq!((order, times), (vec![4, 1, 2, 3], vec![0, 0, 25, 50]));
    }

    #[test]
    fn what_is_for_the_gateway_at_the_other_end_is_not_paced_for_a_phone() {
        let (us, gateway, beyond) = (MeshId([1; 8]), MeshId([2; 8]), MeshId([3; 8]));
        let limits = Limits::default();
        let began = Duration::from_secs(5);
        for (to, took) in [(gateway, Duration::ZERO), (beyond, 99 * DIRECTED_PACE)] {
            let mut link = Link::new(Duration::ZERO, Role::Central, 512, true, &limits);
            (link.bound, link.is_gateway) = (Some(gateway), true);
            (0..100).for_each(|_| assert!(link.push(fragment_of((us, to)))));
            assert_eq!(drain(&mut link, began).last(), Some(&(began + took)));
        }
    }

    #[test]
    fn a_gateway_is_sent_no_more_than_it_takes_in_a_second() {
        let (us, gateway) = (MeshId([1; 8]), MeshId([2; 8]));
        let limits = Limits::default();
        let mut link = Link::new(Duration::ZERO, Role::Central, 512, true, &limits);
        (link.bound, link.is_gateway) = (Some(gateway), true);
        (0..1000).for_each(|_| assert!(link.push(fragment_of((us, gateway)))));
        let mut taken = Rate::new(limits.frames_per_link_a_second, Duration::from_secs(1), 2);
        let times = drain(&mut link, Duration::from_secs(5));
        assert_eq!(times.len(), 1000);
        assert!(times.iter().all(|at| taken.take(*at)));
    }

    #[test]
    fn a_link_that_tells_its_room_is_given_no_more() {
        let mut link = Link::new(Duration::ZERO, Role::Central, 512, false, &Limits::default());
        let now = Duration::from_secs(1);
        let waiting = |_| Waiting { frame: vec![0], flow: None, fragment: None, is_relayed: false };
        (0..10).map(waiting).for_each(|waiting| assert!(link.push(waiting)));
        link.make_room(4);
        assert_eq!(drain(&mut link, now).len(), 4);
        assert_eq!(link.next_deadline(), None);
        link.make_room(2);
        assert_eq!(drain(&mut link, now).len(), 2);
        assert_eq!(link.waiting(), 4);
    }

    #[test]
    fn a_full_queue_turns_relayed_frames_away_before_our_own() {
        let limits = Limits { frames_per_link: 8, ..Limits::default() };
        let mut link = Link::new(Duration::ZERO, Role::Central, 512, true, &limits);
        let mut push = |is_relayed| {
            link.push(Waiting { frame: vec![0], flow: None, fragment: None, is_relayed })
        };
        assert_eq!((0..20).filter(|_| push(true)).count(), 6);
        assert_eq!((0..20).filter(|_| push(false)).count(), 2);
    }

    fn fragment_of(flow: Flow) -> Waiting {
        let fragment = Some(Reach::Directed);
        Waiting { frame: vec![0], flow: Some(flow), fragment, is_relayed: false }
    }

    /// When each frame that waits may leave, from a moment on.
    fn drain(link: &mut Link, mut now: Duration) -> Vec<Duration> {
        let mut times = Vec::new();
        while let Some(at) = link.next_deadline() {
            now = now.max(at);
            if link.pop(now).is_some() {
                times.push(now);
            }
        }
        times
    }
}
