//! Frames of the control stream: hello, pings, renewals.

use std::time::Duration;

use fieldpost_envelope::{
    Certificate, CertificateError, GatewayId, NodePurpose, SignedCertificate,
};
use rand::Rng;

use super::{ASK_INTERVAL, Action, Moment, Peering, limits};
use crate::{
    counters::Refusal,
    flow::Flow,
    link::{Link, LinkId, Open},
    table::NodeId,
    wire::{Frame, Hello, WireError},
};

impl<R: Rng> Peering<R> {
    pub(super) fn hear_frame(&mut self, now: Moment, id: LinkId, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.hear(now.at);
        let frame = match Frame::decode(bytes) {
            Ok(frame) => frame,
            Err(WireError::Version { .. }) => return self.close(now, id, Refusal::Version),
            Err(_) => return self.close(now, id, Refusal::Nonsense),
        };
        let open = link.open.as_ref().map(|open| (open.gateway, open.not_after));
        let result = match (frame, open) {
            (Frame::Hello(hello), None) => self.greet(now, id, hello),
            (Frame::Hello(_), Some(_)) | (_, None) => Err(Refusal::Nonsense),
            (_, Some((_, not_after)))
                if now.wall.as_millis() > not_after.as_millis() + Certificate::CLOCK_SKEW_MS =>
            {
                Err(Refusal::CertificateExpired)
            }
            (Frame::Ping(number), _) => {
                self.write(id, &Frame::Pong(number));
                Ok(())
            }
            (Frame::Pong(_), _) => Ok(()),
            (Frame::Answer { batch, taken }, _) => self.hear_answer(now, id, batch, taken),
            (Frame::Wanted(number), _) => {
                self.tell_rosters(now, id, number);
                Ok(())
            }
            (Frame::Renewed(certificate), Some((gateway, _))) => {
                self.hear_renewal(now, id, gateway, &certificate)
            }
        };
        if let Err(refusal) = result {
            self.close(now, id, refusal);
        }
    }

    fn greet(&mut self, now: Moment, id: LinkId, hello: Hello) -> Result<(), Refusal> {
        let Some(node) = self.links.get(&id).map(|link| link.node) else { return Ok(()) };
        let certificate = check(now, &hello.certificate, node)?;
        let gateway = certificate.gateway;
        if gateway == self.identity.gateway {
            return Err(Refusal::Ours);
        }
        let rival = self.link_in_use(node);
        if rival.is_none() {
            self.make_room(now, gateway)?;
        } else if self.open_links_of(node) >= LINKS_OF_NODE {
            return Err(Refusal::Duplicate);
        }
        // The other side may use either until it has opened both, so neither ends at once.
        let is_retired = rival.is_some_and(|rival| !self.replaces(now, id, rival));
        if let Some(rival) = rival.filter(|_| !is_retired)
            && let Some(open) = self.links.get_mut(&rival).and_then(|link| link.open.as_mut())
        {
            open.retired = Some(now.at);
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.open = Some(Open {
            gateway,
            retired: is_retired.then_some(now.at),
            not_after: certificate.not_after,
            flow: Flow::new(hello.in_flight),
            used: now.at,
            told: None,
            told_at: None,
            asks: None,
            asked_at: now.at,
            misses: false,
        });
        let of_gateway = self.open.entry(gateway).or_default();
        let is_news = of_gateway.is_empty();
        of_gateway.push(id);
        self.counters.links_opened += 1;
        self.table.link(now.at, node, gateway);
        self.actions.push(Action::Open { link: id, gateway });
        if is_news {
            self.actions.push(Action::ReachChanged);
        }
        let number = self.others.number(gateway);
        self.write(id, &Frame::Wanted(number));
        Ok(())
    }

    fn hear_renewal(
        &mut self,
        now: Moment,
        id: LinkId,
        gateway: GatewayId,
        certificate: &[u8],
    ) -> Result<(), Refusal> {
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        let certificate = check(now, certificate, link.node)?;
        if certificate.gateway != gateway {
            return Err(Refusal::CertificateOfAnother);
        }
        if let Some(open) = &mut link.open {
            open.not_after = open.not_after.max(certificate.not_after);
        }
        Ok(())
    }

    fn link_in_use(&self, node: NodeId) -> Option<LinkId> {
        let in_use = |link: &Link| link.open.as_ref().is_some_and(|open| open.retired.is_none());
        let mut links = self.links.iter().filter(|(_, link)| link.node == node);
        links.find(|(_, link)| in_use(link)).map(|(id, _)| *id)
    }

    fn open_links_of(&self, node: NodeId) -> usize {
        self.links.values().filter(|link| link.node == node && link.open.is_some()).count()
    }

    /// Whether a new link takes the place of one that is open.
    ///
    /// Both sides decide alike: of two links, the one stays that the lesser node dialled; of two that
    /// the same node dialled, the one that was connected later, since nobody dials who has a link. A link whose other end
    /// seems dead never stays.
    fn replaces(&self, now: Moment, new: LinkId, old: LinkId) -> bool {
        let (Some(fresh), Some(stale)) = (self.links.get(&new), self.links.get(&old)) else {
            return true;
        };
        if stale.is_doubtful(now.at) {
            return true;
        }
        if fresh.is_dialled == stale.is_dialled {
            return (fresh.since, new) > (stale.since, old);
        }
        fresh.is_dialled == (self.identity.node < fresh.node)
    }

    /// Makes room for one more link, or says why there is none.
    fn make_room(&mut self, now: Moment, gateway: GatewayId) -> Result<(), Refusal> {
        if self.open.get(&gateway).is_some_and(|links| links.len() >= limits::LINKS_OF_GATEWAY) {
            return Err(Refusal::TooManyLinksOfGateway);
        }
        if self.room_for_dials() > 0 {
            return Ok(());
        }
        let idle = self.links.iter().filter_map(|(id, link)| {
            let open = link.open.as_ref()?;
            let is_idle =
                now.at >= open.used + IDLE && !self.table.is_kept(link.node, open.gateway);
            is_idle.then_some((open.used, *id))
        });
        let (_, idle) = idle.min().ok_or(Refusal::TooManyLinks)?;
        self.close(now, idle, Refusal::Idle);
        Ok(())
    }
}

fn check(now: Moment, certificate: &[u8], node: NodeId) -> Result<Certificate, Refusal> {
    let certificate = SignedCertificate::decode(certificate).map_err(|_| Refusal::Nonsense)?;
    let certificate = certificate.verify(now.wall).map_err(|error| match error {
        CertificateError::Signature(_) => Refusal::CertificateForged,
        CertificateError::NotYet { .. } | CertificateError::Expired { .. } => {
            Refusal::CertificateExpired
        }
    })?;
    if certificate.purpose != NodePurpose::Mesh || certificate.node != node.0 {
        return Err(Refusal::CertificateOfAnother);
    }
    Ok(certificate)
}

/// One in use, and some that others were opened instead of.
const LINKS_OF_NODE: usize = 4;
const IDLE: Duration = Duration::from_secs(60);
const _: () = assert!(ASK_INTERVAL.as_secs() < IDLE.as_secs());
