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
    link::{LinkId, Open},
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
        if let Some(rival) = self.open_link_of(node) {
            if !self.replaces(now, id, rival) {
                return Err(Refusal::Duplicate);
            }
        } else {
            self.make_room(now, gateway)?;
        }
        let Some(link) = self.links.get_mut(&id) else { return Ok(()) };
        link.open = Some(Open {
            gateway,
            not_after: certificate.not_after,
            flow: Flow::new(hello.in_flight),
            used: now.at,
            told: None,
            told_at: None,
            asks: None,
            asked_at: now.at,
            misses: false,
        });
        let rival = self.open_link_but(node, id);
        let of_gateway = self.open.entry(gateway).or_default();
        let is_news = of_gateway.is_empty();
        of_gateway.push(id);
        self.counters.links_opened += 1;
        self.table.link(now.at, node, gateway);
        self.actions.push(Action::Open { link: id, gateway });
        if let Some(rival) = rival {
            self.close(now, rival, Refusal::Duplicate);
            self.table.link(now.at, node, gateway);
        }
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

    fn open_link_of(&self, node: NodeId) -> Option<LinkId> {
        let is_open =
            |(_, link): &(_, &crate::link::Link)| link.node == node && link.open.is_some();
        self.links.iter().find(is_open).map(|(id, _)| *id)
    }

    fn open_link_but(&self, node: NodeId, but: LinkId) -> Option<LinkId> {
        let mut links = self.links.iter().filter(|(id, _)| **id != but);
        links.find(|(_, link)| link.node == node && link.open.is_some()).map(|(id, _)| *id)
    }

    /// Whether a new link takes the place of one that is open.
    ///
    /// Both sides decide alike: of two links, the one stays that the lesser node dialled; of two that
    /// the same node dialled, the newer, since nobody dials who has a link. A link whose other end
    /// seems dead never stays.
    fn replaces(&self, now: Moment, new: LinkId, old: LinkId) -> bool {
        let (Some(new), Some(old)) = (self.links.get(&new), self.links.get(&old)) else {
            return true;
        };
        let is_ours_to_dial = self.identity.node < new.node;
        new.is_dialled == old.is_dialled
            || new.is_dialled == is_ours_to_dial
            || old.is_doubtful(now.at)
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

const IDLE: Duration = Duration::from_secs(60);
const _: () = assert!(ASK_INTERVAL.as_secs() < IDLE.as_secs());
