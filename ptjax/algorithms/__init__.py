"""Every method by name: the index of what ptjax can do."""

from ptjax.algorithms.distill import GKD, GKD_MIXED, gkd_after, on_policy_distillation_after
from ptjax.algorithms.dpo import DPO
from ptjax.algorithms.embed import EMBED
from ptjax.algorithms.kto import APO_ZERO_UNPAIRED, BCO, KTO
from ptjax.algorithms.offline import AWR, DRO
from ptjax.algorithms.online import online
from ptjax.algorithms.ppo import ppo_after
from ptjax.algorithms.raft import raft_after
from ptjax.algorithms.reference_free import ALPHAPO, CPO, ORPO, SIMPO
from ptjax.algorithms.reward import (
    OUTCOME_REWARD,
    PROCESS_REWARD,
    REWARD,
    REWARD_RANKED,
    REWARD_REGRESSION,
)
from ptjax.algorithms.self_made import ONLINE_DPO, SPIN
from ptjax.algorithms.sft import SFT
from ptjax.stages.groups import answers, rollout

METHODS = {
    "sft": SFT,
    # pairs, chosen and rejected
    "dpo": DPO,
    "cpo": CPO,
    "simpo": SIMPO,
    "alphapo": ALPHAPO,
    "orpo": ORPO,
    # pairs that the run makes itself
    "spin": SPIN,
    "online_dpo": ONLINE_DPO,
    # single answers, desirable or not
    "kto": KTO,
    "bco": BCO,
    "apo_zero_unpaired": APO_ZERO_UNPAIRED,
    # the policy's own answers, by reward
    **online(rollout),
    "ppo": ppo_after(rollout),
    "raft": raft_after(rollout),
    # a teacher
    "gkd": GKD,
    "gkd_mixed": GKD_MIXED,
    "gkd_on_policy": gkd_after(answers),
    "on_policy_distillation": on_policy_distillation_after(answers),
    # single answers with a reward, logged
    "awr": AWR,
    "dro": DRO,
    # reward models
    "reward": REWARD,
    "reward_ranked": REWARD_RANKED,
    "reward_regression": REWARD_REGRESSION,
    "outcome_reward": OUTCOME_REWARD,
    "process_reward": PROCESS_REWARD,
    # embeddings
    "embed": EMBED,
}
