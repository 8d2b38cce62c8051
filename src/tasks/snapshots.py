"""From the snapshot of any task that can be asked about pictures to what asks it."""

from run_folder import read_run
from tasks import checkpoints
from tasks.grounder import Grounder
from tasks.matcher import Matcher
from tasks.predictor import Predictor
from tasks.registry import output_of


def load(path, device='cpu'):
    """The Predictor, Grounder or Matcher of a snapshot, by the task that its run recorded. Raises what their loaders do, for
    other tasks what Predictor.from_snapshot does."""
    kind = read_run(checkpoints.find_weights(str(path), checkpoints.SNAPSHOT).parent).get('task')
    loaders = {'region': Grounder.from_snapshot, 'match': Matcher.from_pretrained}
    return loaders.get(output_of(kind), Predictor.from_snapshot)(path, device)
