//! Limits by the second, in virtual time.

use super::*;

fn limited(change: impl FnOnce(&mut Limits)) -> Sim {
    let mut config = Config::new("preset public-only".parse().unwrap(), 7);
    config.guest_mac = Some(GUEST_MAC);
    change(&mut config.limits);
    Sim::new(config, 7)
}

fn seconds(sim: &Sim) -> f64 {
    sim.now.as_secs_f64()
}

#[test]
fn what_a_guest_sends_keeps_to_its_limit() {
    let mut sim = limited(|limits| limits.upload = Some(100_000));
    sim.serve(80, Behaviour::Serve(Vec::new()));
    let data = noise(1, 1_000_000);
    let handle = sim.connect(SERVER, 40_000);
    let mut sent = 0;
    while sim.upstream_bytes() < data.len() {
        if sim.socket(handle).can_send() {
            sent += sim.socket(handle).send_slice(&data[sent..]).unwrap();
        }
        sim.run_until(sim.now + Duration::from_millis(10));
        let allowed = 65_536.0 + 100_000.0 * seconds(&sim);
        assert!(
            sim.upstream_bytes() as f64 <= allowed,
            "{} s",
            seconds(&sim)
        );
    }
    assert!(sim.upstream().received == data);
    // A burst, and then the rate: not faster, and not much slower either.
    let taken = seconds(&sim);
    assert!((9.0..11.0).contains(&taken), "{taken} s");
}

#[test]
fn what_a_guest_gets_keeps_to_its_limit() {
    let mut sim = limited(|limits| limits.download = Some(1_000_000));
    let data = noise(2, 3_000_000);
    sim.serve(80, Behaviour::Serve(data.clone()));
    let handle = sim.connect(SERVER, 40_000);
    let got = sim.exchange(handle, b"");
    assert!(got == data);
    let taken = seconds(&sim);
    assert!((2.8..3.3).contains(&taken), "{taken} s");
}

#[test]
fn flows_share_what_there_is() {
    const FLOWS: u16 = 10;
    let mut sim = limited(|limits| limits.upload = Some(500_000));
    sim.serve(80, Behaviour::Serve(Vec::new()));
    let handles: Vec<_> = (0..FLOWS)
        .map(|n| sim.connect(SERVER, 40_000 + n))
        .collect();
    while seconds(&sim) < 20.0 {
        for handle in &handles {
            let socket = sim.socket(*handle);
            while socket.can_send() && socket.send_slice(&[0; 10_000]).unwrap() > 0 {}
        }
        sim.run_until(sim.now + Duration::from_millis(50));
    }
    let each: Vec<usize> = sim
        .upstreams
        .values()
        .map(|upstream| upstream.received.len())
        .collect();
    let total: usize = each.iter().sum();
    assert!((9_500_000..10_200_000).contains(&total), "{total}");
    for bytes in &each {
        let share = total / usize::from(FLOWS);
        assert!((share / 2..share * 2).contains(bytes), "{each:?}");
    }
}

#[test]
fn an_end_waits_for_what_was_sent_before() {
    let mut sim = limited(|limits| limits.upload = Some(50_000));
    sim.serve(80, Behaviour::Echo);
    let data = noise(3, 300_000);
    let handle = sim.connect(SERVER, 40_000);
    assert!(sim.exchange(handle, &data) == data);
    sim.run_until(sim.now + Duration::from_secs(60));
    assert!(sim.upstream().shut);
    assert_eq!(sim.upstream().closed, Some(false));
    assert_eq!(
        (sim.gateway.flows(), sim.gateway.next_timeout()),
        ((0, 0), None)
    );
}

#[test]
fn datagrams_over_the_limit_are_lost_and_told_of() {
    let mut sim = limited(|limits| {
        limits.upload = Some(1000);
        limits.download = Some(1000);
    });
    let frame = datagram("192.168.127.2:5000", "1.1.1.1:123", &[0; 30_000]);
    for _ in 0..3 {
        sim.inject(&frame);
    }
    assert_eq!(sim.datagrams.len(), 2);
    let flow = sim.datagrams[0].0;
    for _ in 0..3 {
        sim.gateway.datagram(sim.now, flow, &[0; 30_000]);
    }
    sim.run();
    let large = sim.seen.iter().filter(|frame| frame.len() > 30_000);
    assert_eq!(large.count(), 2);
    assert!(drops(&sim).contains(&DropReason::RateLimit));
    sim.run_until(Duration::from_secs(31));
    sim.inject(&frame);
    assert_eq!(sim.datagrams.len(), 3);
}

#[test]
fn flows_that_open_too_fast_are_refused() {
    let mut sim = limited(|limits| limits.opens = Some(5));
    sim.serve(80, Behaviour::Echo);
    let handles: Vec<_> = (0..8).map(|n| sim.connect(SERVER, 40_000 + n)).collect();
    sim.run_until(Duration::from_millis(1));
    let mut open = 0;
    for handle in handles {
        open += usize::from(sim.socket(handle).state() == State::Established);
    }
    assert_eq!(open, 5);
    assert!(sim.client("127.0.0.1:5", 80, Behaviour::Echo).is_none());
    sim.inject(&datagram("192.168.127.2:5000", "1.1.1.1:123", b"x"));
    assert_eq!(last_icmp(&sim), Some((3, 13)));
    let decisions = decisions(&sim);
    assert_eq!(decisions.len(), 10, "each flow is told of once");
    assert_eq!(decisions[5..], [Some(Refusal::RateLimit); 5]);
    assert_eq!(drops(&sim), []);
    sim.run_until(Duration::from_secs(2));
    let late = sim.connect(SERVER, 41_000);
    sim.run();
    assert_eq!(sim.socket(late).state(), State::Established);
}
