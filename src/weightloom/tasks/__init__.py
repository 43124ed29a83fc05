"""Tasks: a seed or a data set in, support and query sets out, many tasks at once.

In:   a data set by name, or a rule that makes tasks; a ``torch.Generator``.
Out:  `Tasks`, every tensor with a leading tasks axis.
Knows nothing of networks.
"""

from weightloom.tasks.augment import Among as Among
from weightloom.tasks.augment import Change as Change
from weightloom.tasks.augment import Colour as Colour
from weightloom.tasks.augment import Crop as Crop
from weightloom.tasks.augment import CutOut as CutOut
from weightloom.tasks.augment import Flip as Flip
from weightloom.tasks.augment import InTurn as InTurn
from weightloom.tasks.augment import Jitter as Jitter
from weightloom.tasks.augment import Zoom as Zoom
from weightloom.tasks.cameras import Cameras as Cameras
from weightloom.tasks.cameras import CameraTasks as CameraTasks
from weightloom.tasks.cameras import sample_cameras as sample_cameras
from weightloom.tasks.cifar_fs import load_cifar_fs as load_cifar_fs
from weightloom.tasks.classes import ClassTasks as ClassTasks
from weightloom.tasks.data import ClassPool as ClassPool
from weightloom.tasks.data import class_groups as class_groups
from weightloom.tasks.data import digits_split as digits_split
from weightloom.tasks.data import lake_split as lake_split
from weightloom.tasks.data import load_digit_images as load_digit_images
from weightloom.tasks.data import load_digits as load_digits
from weightloom.tasks.data import load_omniglot as load_omniglot
from weightloom.tasks.data import omniglot_split as omniglot_split
from weightloom.tasks.data import rotated as rotated
from weightloom.tasks.domains import DomainTasks as DomainTasks
from weightloom.tasks.facts import FactTasks as FactTasks
from weightloom.tasks.fields import FieldFamily as FieldFamily
from weightloom.tasks.fields import FieldPoints as FieldPoints
from weightloom.tasks.fields import Fields as Fields
from weightloom.tasks.fields import draw_points as draw_points
from weightloom.tasks.fields import field_family as field_family
from weightloom.tasks.fields import make_fields as make_fields
from weightloom.tasks.folder import FolderPool as FolderPool
from weightloom.tasks.folder import load_folder as load_folder
from weightloom.tasks.folder import split_classes as split_classes
from weightloom.tasks.functions import FunctionTasks as FunctionTasks
from weightloom.tasks.functions import load_mnist as load_mnist
from weightloom.tasks.functions import pixel_positions as pixel_positions
from weightloom.tasks.growth import growth_split as growth_split
from weightloom.tasks.growth import load_growth_curves as load_growth_curves
from weightloom.tasks.hyperteacher import HyperteacherTasks as HyperteacherTasks
from weightloom.tasks.mel import MelSpectrograms as MelSpectrograms
from weightloom.tasks.points import PointPool as PointPool
from weightloom.tasks.points import PointTasks as PointTasks
from weightloom.tasks.points import Stretch as Stretch
from weightloom.tasks.sinusoid import SinusoidTasks as SinusoidTasks
from weightloom.tasks.spoken import SpokenDigits as SpokenDigits
from weightloom.tasks.spoken import load_spoken_digits as load_spoken_digits
from weightloom.tasks.spoken import load_words as load_words
from weightloom.tasks.spoken import spectrograms as spectrograms
from weightloom.tasks.spoken import spoken_split as spoken_split
from weightloom.tasks.table import TableTasks as TableTasks
from weightloom.tasks.table import load_table as load_table
from weightloom.tasks.tasks import ALL as ALL
from weightloom.tasks.tasks import Examples as Examples
from weightloom.tasks.tasks import Skipped as Skipped
from weightloom.tasks.tasks import Tasks as Tasks
from weightloom.tasks.tasks import TaskSource as TaskSource
from weightloom.tasks.tasks import draw_share as draw_share
from weightloom.tasks.text import TextSet as TextSet
from weightloom.tasks.text import load_intent_pool as load_intent_pool
from weightloom.tasks.text import load_intents as load_intents
from weightloom.tasks.text import name_in_words as name_in_words
from weightloom.tasks.text import sentence_features as sentence_features
from weightloom.tasks.text import with_names as with_names
from weightloom.tasks.wav import WavFolder as WavFolder
from weightloom.tasks.wav import load_wavs as load_wavs
from weightloom.tasks.wav import read_wav as read_wav
