//! Random programs against a model: archivers that crash, lose answers and race, maintenance that sweeps and prunes,
//! readers that are stale or look at a replica that lags, all over a store that fails, one step at a time in an order
//! that the seed decides. What the store accepts is written down in plain lists; everything that writers and readers
//! say is compared with those.
//!
//! `EVERLOG_PROGRAMS=n` runs n programs, `EVERLOG_SEED=s` starts with seed s.

mod actors;
mod program;
mod sim_store;
mod world;

use crate::taken::{Decision, Row};

fn number_from(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
        Err(_) => otherwise,
    }
}

#[test]
fn random_programs_agree_with_the_model() {
    let (first, count) = (
        number_from("EVERLOG_SEED", 1),
        number_from("EVERLOG_PROGRAMS", 2_000),
    );
    let mut rows = std::collections::BTreeMap::new();
    for seed in first..first + count {
        match program::run(seed, None) {
            Ok(seen) => seen
                .into_iter()
                .for_each(|row| *rows.entry(row).or_insert(0_u64) += 1),
            Err(why) => panic!("{why}\nagain with: EVERLOG_SEED={seed} EVERLOG_PROGRAMS=1"),
        }
    }
    if 2_000 <= count {
        // A table whose rows are never reached is not tested.
        let all = "ABCDEFGHIJKLMNOPQRSTUVWX";
        let missing: String = all
            .chars()
            .filter(|row| !rows.contains_key(&row.to_string()))
            .collect();
        assert!(
            missing.is_empty(),
            "rows {missing} were never reached: {rows:?}"
        );
    }
}

/// Runs programs until one fails; the claim is that one does.
fn check_broken(row: Row, instead: Decision) {
    let programs = 6_000;
    let caught = (1..=programs).find(|seed| program::run(*seed, Some((row, instead))).is_err());
    if let Some(seed) = caught {
        assert_eq!(
            program::run(seed, None).err(),
            None,
            "the unbroken table fails as well"
        );
    }
    assert!(
        caught.is_some(),
        "{programs} programs did not notice that row {row:?} is {instead:?}"
    );
}

macro_rules! broken {
    ($($name:ident: $row:ident => $instead:ident;)*) => {
        $(#[test]
        fn $name() {
            check_broken(Row::$row, Decision::$instead);
        })*
    };
}

broken! {
    row_a_broken_is_noticed: A => Lost;
    row_b_broken_is_noticed: B => Lost;
    row_c_broken_is_noticed: C => Won;
    row_d_broken_is_noticed: D => Lost;
    row_e_broken_is_noticed: E => Won;
    row_f_broken_is_noticed: F => Won;
    row_g_broken_is_noticed: G => Won;
    row_h_broken_is_noticed: H => Put;
    row_i_broken_is_noticed: I => Lost;
    row_j_broken_is_noticed: J => Won;
    row_k_broken_is_noticed: K => Lost;
    row_l_broken_is_noticed: L => Won;
    row_m_broken_is_noticed: M => Won;
    row_m_forgotten_is_noticed: M => Forget;
    row_n_broken_is_noticed: N => Won;
    row_n_forgotten_is_noticed: N => Forget;
    row_o_broken_is_noticed: O => Lost;
    row_p_broken_is_noticed: P => Won;
    row_q_broken_is_noticed: Q => Lost;
    row_r_broken_is_noticed: R => Won;
    row_s_broken_is_noticed: S => Won;
    row_t_broken_is_noticed: T => Won;
    row_u_broken_is_noticed: U => Stop;
    row_v_broken_is_noticed: V => LostToSweep;
    row_w_broken_is_noticed: W => GoOn;
    row_x_broken_is_noticed: X => GoOn;
    a_count_that_never_ends_is_noticed: C => LostToOurselves;
    a_sweep_that_voids_nothing_is_noticed: D => Unvoided;
}
