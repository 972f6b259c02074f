{{- define "flowscribe.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels by which pods of a component are selected: (list root component) */}}
{{- define "flowscribe.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Metadata of an object of a component: (list root component name [annotations]) */}}
{{- define "flowscribe.metadata" -}}
{{- $root := index . 0 -}}
{{- $own := dict -}}
{{- if gt (len .) 3 }}{{ $own = index . 3 }}{{ end -}}
name: {{ index . 2 }}
labels:
  {{- include "flowscribe.selector" (list $root (index . 1)) | nindent 2 }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  {{- with $root.Values.labels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with mergeOverwrite (dict) $root.Values.annotations $own }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "flowscribe.namespaced" -}}
{{ include "flowscribe.metadata" . }}
namespace: {{ (index . 0).Release.Namespace }}
{{- end }}

{{/* Metadata of a pod: (list root component values) */}}
{{- define "flowscribe.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
labels:
  {{- include "flowscribe.selector" (list $root (index . 1)) | nindent 2 }}
  {{- with $root.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
  {{- with $values.labels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with mergeOverwrite (dict) $root.Values.podAnnotations $values.annotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a pod runs: (list root values) */}}
{{- define "flowscribe.placement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "flowscribe.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{/* A pod that needs no more than its own files. */}}
{{- define "flowscribe.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "flowscribe.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end }}

{{/* The Secret with the token that receive asks for. */}}
{{- define "flowscribe.tokenSecret" -}}
{{ .Values.receive.tokenSecret | default (printf "%s-receive-token" (include "flowscribe.name" .)) }}
{{- end }}

{{/* Where a sender sends to, as variables: (list root) */}}
{{- define "flowscribe.destination" -}}
- { name: FLOWSCRIBE_CLUSTER, value: {{ .Values.cluster | quote }} }
{{- if eq .Values.destination "receive" }}
- { name: FLOWSCRIBE_OTLP_ENDPOINT, value: "{{ if .Values.receive.tlsSecret }}https{{ else }}http{{ end }}://{{ include "flowscribe.name" . }}-receive.{{ .Release.Namespace }}:4317" }
{{- if .Values.receive.tlsSecret }}
- { name: OTEL_EXPORTER_OTLP_CERTIFICATE, value: /etc/flowscribe-tls/ca.crt }
- { name: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, value: /etc/flowscribe-tls/tls.crt }
- { name: OTEL_EXPORTER_OTLP_CLIENT_KEY, value: /etc/flowscribe-tls/tls.key }
{{- else }}
- { name: RECEIVE_TOKEN, valueFrom: { secretKeyRef: { name: {{ include "flowscribe.tokenSecret" . }}, key: token } } }
- { name: OTEL_EXPORTER_OTLP_HEADERS, value: "Authorization=Bearer%20$(RECEIVE_TOKEN)" }
{{- end }}
{{- else if eq .Values.destination "collector" }}
- { name: FLOWSCRIBE_OTLP_ENDPOINT, value: {{ required "collector.endpoint says where the collector is" .Values.collector.endpoint | quote }} }
{{- with .Values.collector.protocol }}
- { name: FLOWSCRIBE_OTLP_PROTOCOL, value: {{ . | quote }} }
{{- end }}
{{- else if eq .Values.destination "object-store" }}
- { name: FLOWSCRIBE_OUTPUT, value: {{ required "objectStore.url says where the object store is" .Values.objectStore.url | quote }} }
{{- else }}
{{- fail (printf "destination is receive, collector or object-store, not %s" .Values.destination) }}
{{- end }}
{{- end }}

{{/* The Secret with variables for that. */}}
{{- define "flowscribe.secret" -}}
{{- $secret := "" }}
{{- if eq .Values.destination "collector" }}{{ $secret = .Values.collector.secret }}{{ end }}
{{- if eq .Values.destination "object-store" }}{{ $secret = .Values.objectStore.secret }}{{ end }}
{{- with $secret }}
envFrom: [{ secretRef: { name: {{ . }} } }]
{{- end }}
{{- end }}

{{/* What flowscribe inventory and monitor read, and what for. */}}
{{- define "flowscribe.inventoryRules" -}}
# Who has which address, and what stands behind Services: without one of these no address counts as external.
- { apiGroups: [""], resources: [nodes], verbs: [list, watch] }
- { apiGroups: [""], resources: [pods], verbs: [list, watch] }
- { apiGroups: [""], resources: [services], verbs: [list, watch] }
- { apiGroups: ["discovery.k8s.io"], resources: [endpointslices], verbs: [list, watch] }
# Their labels.
- { apiGroups: [""], resources: [namespaces], verbs: [list, watch] }
# The ranges of Service addresses.
- { apiGroups: ["networking.k8s.io"], resources: [servicecidrs], verbs: [list, watch] }
# By which labels their authors know pods.
- { apiGroups: ["policy"], resources: [poddisruptionbudgets], verbs: [list, watch] }
# What owns pods, and by which labels.
- { apiGroups: [""], resources: [replicationcontrollers], verbs: [list, watch] }
- { apiGroups: ["apps"], resources: [deployments], verbs: [list, watch] }
- { apiGroups: ["apps"], resources: [replicasets], verbs: [list, watch] }
- { apiGroups: ["apps"], resources: [statefulsets], verbs: [list, watch] }
- { apiGroups: ["apps"], resources: [daemonsets], verbs: [list, watch] }
- { apiGroups: ["batch"], resources: [jobs], verbs: [list, watch] }
- { apiGroups: ["batch"], resources: [cronjobs], verbs: [list, watch] }
# Only where Argo Rollouts is installed.
- { apiGroups: ["argoproj.io"], resources: [rollouts], verbs: [list, watch] }
{{- end }}
