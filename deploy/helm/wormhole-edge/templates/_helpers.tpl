{{/* name is what every object is called. */}}
{{- define "edge.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* selector is what tells this release's pods from all others; it never changes. */}}
{{- define "edge.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "edge.labels" -}}
{{ include "edge.selector" . }}
app.kubernetes.io/version: {{ default .Chart.AppVersion .Values.image.tag | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "edge.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* domain is what the replicas' names end in, inside the Kubernetes cluster. */}}
{{- define "edge.domain" -}}
{{ include "edge.name" . }}-nodes.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* cluster is what makes a replica one of several edges: variables, because of
$(POD_NAME). The first replica names itself as the one to join at, which a member
ignores, and which keeps it from making a second network if its volume is lost. */}}
{{- define "edge.cluster" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.cluster.enabled) -}}
{{- fail "replicas: more than one needs cluster.enabled" -}}
{{- end -}}
{{- with .Values.cluster -}}
{{- if and (gt (int $.Values.replicas) 1) (not .joinSecret) -}}
{{- fail "replicas: start with one, then set cluster.joinSecret: see values.yaml" -}}
{{- end -}}
{{- if .enabled -}}
{{- if not $.Values.persistence.enabled -}}
{{- fail "cluster.enabled: an edge is a member by what is on its volume: set persistence.enabled" -}}
{{- end -}}
{{- $own := printf "$(POD_NAME).%s" (include "edge.domain" $) -}}
{{- if contains "$(POD_NAME)" $.Values.hostname }}{{ $own = $.Values.hostname }}{{ end -}}
- {name: EDGE_CLUSTER_LISTEN, value: ":7443"}
- {name: EDGE_ADVERTISE, value: {{ default $own .advertise | quote }}}
{{- if .joinSecret }}
- {name: EDGE_JOIN, value: {{ default (printf "%s-0.%s:443" (include "edge.name" $) (include "edge.domain" $)) .join | quote }}}
- {name: EDGE_JOIN_TOKEN_FILE, value: /etc/wormhole-join/token}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* config is the edge's configuration file: what the chart decides and what the
operator says. The hostname is a variable because of $(POD_NAME). */}}
{{- define "edge.config" -}}
{{- $config := dict
  "data_dir" "/var/lib/wormhole"
  "http" ":80"
  "https" ":443"
  "admin" ":7080"
  "log_format" "json"
  "drain_delay" (printf "%ds" (int .Values.drain.delaySeconds))
  "drain_timeout" (printf "%ds" (int .Values.drain.timeoutSeconds))
-}}
{{- with .Values.tls.mode }}{{ $_ := set $config "tls" . }}{{ end -}}
{{- with .Values.tls.acme.email }}{{ $_ := set $config "acme_email" . }}{{ end -}}
{{- with .Values.tls.acme.directory }}{{ $_ := set $config "acme_directory" . }}{{ end -}}
{{- with .Values.region }}{{ $_ := set $config "region" . }}{{ end -}}
{{- if eq .Values.tls.mode "files" -}}
{{- $_ := set $config "cert" (list "/etc/wormhole-tls/tls.crt") -}}
{{- $_ := set $config "key" (list "/etc/wormhole-tls/tls.key") -}}
{{- end -}}
{{- with .Values.sites }}{{ $_ := set $config "sites" . }}{{ end -}}
{{- toYaml (merge $config (deepCopy .Values.config)) -}}
{{- end -}}
