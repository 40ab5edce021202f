//! A message to a group elsewhere, passed on by the group's home.

use fieldpost_envelope::{
    Forward, ReceiptError, ReceiptKind, Said, SignError, SignedEnvelope, Violation,
};

use crate::fixtures::{ALPHA, BRAVO, CHARLIE, forward, greeting, receipt, signed};

#[test]
fn a_member_sees_who_wrote_and_in_which_group() {
    let carried = forward().sign(&BRAVO.key()).unwrap();
    let verified = SignedEnvelope::decode(carried.as_bytes()).unwrap().verify().unwrap();
    assert_eq!(verified.signer, BRAVO.id());
    assert_eq!(verified.digest, carried.digest());
    let Said::Message(message) = verified.said else { panic!("a message was forwarded") };
    assert_eq!(message.sender, ALPHA.peer("alice"));
    assert_eq!(message.recipient, CHARLIE.peer("carol").into());
    assert_eq!(message.to, BRAVO.group("hikers"));
    assert_eq!(message.lane_seq, forward().lane_seq);
    assert_eq!(message.content, greeting().content);
}

#[test]
fn only_the_home_forwards_and_only_what_came_from_elsewhere() {
    let refused = Err(SignError::Violation(Violation::ForwardOfAnother));
    assert_eq!(forward().sign(&CHARLIE.key()), refused);
    let direct = Forward { original: signed(&greeting()), ..forward() };
    assert_eq!(direct.sign(&BRAVO.key()), refused);
    let receipt = receipt(ReceiptKind::Stored, None).sign(&BRAVO.key()).unwrap();
    assert_eq!(Forward { original: receipt, ..forward() }.sign(&BRAVO.key()), refused);
}

#[test]
fn a_receipt_for_a_forward_answers_the_home() {
    let carried = forward().sign(&BRAVO.key()).unwrap();
    let mut receipt = receipt(ReceiptKind::Stored, None);
    (receipt.answers, receipt.signer) = (carried.digest(), CHARLIE.id());
    assert_eq!(receipt.check_answers(&carried.digest(), CHARLIE.id()), Ok(()));
    let original = forward().original.digest();
    assert_eq!(receipt.check_answers(&original, CHARLIE.id()), Err(ReceiptError::OtherEnvelope));
}
